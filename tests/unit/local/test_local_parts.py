"""What each child process is started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from muster.local.parts import (
    ClusterPlan,
    Stage,
    base_environment,
    parts_of,
    redis_config,
    redis_url,
)
from muster.local.ports import PORT_NAMES, SERVICES, port_names
from muster.local.state import StateDir

PORTS = {name: 12_000 + index for index, name in enumerate(PORT_NAMES)}


@pytest.fixture
def plan() -> ClusterPlan:
    return ClusterPlan(
        state=StateDir(Path("/state")),
        ports=PORTS,
        join_secret="join-secret",
        redis_password="redis-password",
        python="/usr/bin/python3",
        etcd="/bin/etcd",
        redis="/bin/redis-server",
        agents=3,
        agent_cpu="2",
        agent_memory="512Mi",
        skills=(),
        work_dir=Path("/work dir"),
        environ={"PATH": "/bin", "HOME": "/home/me"},
    )


def test_every_process_is_there_once(plan: ClusterPlan) -> None:
    names = [part.name for part in parts_of(plan)]
    assert names == ["etcd", "redis", *SERVICES, "agent-1", "agent-2", "agent-3"]


def test_no_secret_is_in_an_argument(plan: ClusterPlan) -> None:
    for part in parts_of(plan):
        arguments = " ".join(part.argv)
        assert "secret" not in arguments
        assert "password" not in arguments


def test_who_uses_a_part_ends_before_it(plan: ClusterPlan) -> None:
    stages = {part.name: part.stage for part in parts_of(plan)}
    assert stages["agent-1"] < stages["gateway"] < stages["scheduler"] == stages["registry"]
    assert stages["monitor"] < stages["storage"] < stages["redis"] < stages["etcd"]
    assert [part.name for part in parts_of(plan) if part.may_leave] == list(plan.agent_ids)
    assert sorted(Stage) == list(Stage)


def test_services_know_each_other(plan: ClusterPlan) -> None:
    parts = {part.name: part for part in parts_of(plan)}
    gateway, storage = parts["gateway"], parts["storage"]
    assert gateway.argv == ("/usr/bin/python3", "-P", "-m", "muster_gateway")
    assert gateway.env["MUSTER_STORAGE"] == storage.env["MUSTER_LISTEN"]
    assert gateway.env["MUSTER_REGISTRY"] == parts["registry"].env["MUSTER_LISTEN"]
    assert gateway.env["MUSTER_SCHEDULERS"] == parts["scheduler"].env["MUSTER_LISTEN"]
    assert gateway.env["MUSTER_MONITORS"] == parts["monitor"].env["MUSTER_LISTEN"]
    assert gateway.env["MUSTER_HTTP_LISTEN"] == f"127.0.0.1:{PORTS['http']}"
    assert gateway.env["MUSTER_BOOTSTRAP_KEY_FILE"] == "/state/admin.key"
    assert gateway.ready_port == PORTS["http"]
    assert "MUSTER_REDIS_URL" not in gateway.env
    assert storage.env["MUSTER_BLOB_DIR"] == "/state/blobs"
    assert f"127.0.0.1:{storage.ready_port}" == storage.env["MUSTER_METRICS_LISTEN"]
    for name in SERVICES:
        assert parts[name].env["MUSTER_JOIN_SECRET"] == "join-secret"
        assert parts[name].env["MUSTER_STATE_DIR"] == f"/state/services/{name}"
        assert parts[name].env["MUSTER_ETCD_ENDPOINTS"] == f"127.0.0.1:{PORTS['etcd']}"


def test_agents_offer_what_was_asked_for(plan: ClusterPlan) -> None:
    agent = parts_of(plan)[-1]
    assert agent.env["MUSTER_AGENT_ID"] == "agent-3"
    assert agent.env["MUSTER_AGENT_CPU"] == "2"
    assert agent.env["MUSTER_AGENT_MEMORY"] == "512Mi"
    assert "MUSTER_SKILLS" not in agent.env
    assert "MUSTER_REDIS_URL" not in agent.env


def test_skills_are_found_from_where_the_operator_stands(plan: ClusterPlan) -> None:
    with_skills = replace(
        plan, skills=("mine.bots", "/x/y.py"), environ={**plan.environ, "PYTHONPATH": "/lib"}
    )
    agent = parts_of(with_skills)[-1]
    assert agent.env["MUSTER_SKILLS"] == "mine.bots,/x/y.py"
    assert agent.env["PYTHONPATH"] == "/work dir:/lib"


def test_the_operators_own_key_does_not_reach_the_children(plan: ClusterPlan) -> None:
    kept = base_environment(
        {
            "MUSTER_API_KEY": "mst_other",
            "MUSTER_URL": "http://other",
            "MUSTER_PROFILE": "/p",
            "ETCD_NAME": "x",
            "MUSTER_AGENT_SLOTS": "8",
        }
    )
    assert kept == {"MUSTER_AGENT_SLOTS": "8", "MALLOC_ARENA_MAX": "2"}
    etcd = parts_of(replace(plan, environ={**plan.environ, "ETCD_NAME": "x"}))[0]
    assert etcd.env == {"PATH": "/bin", "HOME": "/home/me"}


def test_redis_forces_every_write_to_disk_and_evicts_nothing(plan: ClusterPlan) -> None:
    lines = redis_config(plan).splitlines()
    for wanted in (
        "bind 127.0.0.1",
        f"port {PORTS['redis']}",
        "requirepass redis-password",
        "appendonly yes",
        "appendfsync always",
        "maxmemory-policy noeviction",
        'save ""',
    ):
        assert wanted in lines
    assert redis_url(plan) == f"redis://:redis-password@127.0.0.1:{PORTS['redis']}/0"


def test_paths_are_quoted_for_redis(plan: ClusterPlan) -> None:
    odd = replace(plan, state=StateDir(Path('/a "b" c\\d')))
    assert r'dir "/a \"b\" c\\d/redis"' in redis_config(odd)


def test_replicas_have_ports_and_folders_of_their_own_and_know_each_other(
    plan: ClusterPlan,
) -> None:
    ports = {name: 12_000 + index for index, name in enumerate(port_names(2))}
    plan = replace(plan, replicas=2, ports=ports)
    parts = {part.name: part for part in parts_of(plan)}
    assert len(parts) == 2 + 2 * len(SERVICES) + 3
    for service in SERVICES:
        first, second = parts[service], parts[f"{service}-2"]
        assert second.argv == first.argv
        assert second.stage is first.stage
        assert second.cwd != first.cwd
        assert second.ready_port != first.ready_port
    both = f"127.0.0.1:{ports['storage']},127.0.0.1:{ports['storage-2']}"
    assert parts["scheduler-2"].env["MUSTER_STORAGE"] == both
    assert parts["storage-2"].env["MUSTER_LISTEN"] == f"127.0.0.1:{ports['storage-2']}"
    assert parts["storage-2"].env["MUSTER_BLOB_DIR"] == parts["storage"].env["MUSTER_BLOB_DIR"]
    registries = f"127.0.0.1:{ports['registry']},127.0.0.1:{ports['registry-2']}"
    assert parts["agent-1"].env["MUSTER_REGISTRY"] == registries
    assert plan.urls == (
        f"http://127.0.0.1:{ports['http']}",
        f"http://127.0.0.1:{ports['http-2']}",
    )
    assert set(port_names(1)) < set(port_names(2))
