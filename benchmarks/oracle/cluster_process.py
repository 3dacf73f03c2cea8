"""The parent process of a cluster under test: as `muster up`, with a standby and with detours.

    python -m benchmarks.oracle.cluster_process SPEC

SPEC is a JSON file: `parent` (a pid; it ends with that process), `state_dir`, `agents`, `skills`
(a path), `work_dir`, `holds` (a folder), `proxies` (see `detours`), `namespaces` (of agents that
are hosts of their own), `clocks` (a folder, or empty), `etcd_args`, `weak` (storage takes any
Redis)
and `taps` (see `tapped`). It prints one JSON line when the cluster is ready and ends at SIGTERM.
It starts, restarts and ends its children with the machinery of `muster up`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.oracle.wall_clock import WallClock
from muster.agent.process_tree import die_with_parent
from muster.domain.errors import MusterError
from muster.local.binaries import find_etcd, find_redis
from muster.local.cluster import run_cluster
from muster.local.machine import cpu_count, fair_share, memory_bytes
from muster.local.parts import ClusterPlan, Part, parts_of, redis_config
from muster.local.ports import LOOPBACK, PORT_NAMES, PORTS, choose_ports, is_free
from muster.local.state import (
    ClusterLock,
    StateDir,
    admin_key,
    load_remembered,
    open_state_dir,
    store_remembered,
    write_private,
)

STANDBY = "standby"
# An overload makes half a million.
EVENTS_KEPT = 2_000_000
# While the file exists, the part is not started again.
_WAIT_WHILE_HELD = 'while [ -e "$0" ]; do sleep 0.02; done; exec "$@"'


def detours(parts: tuple[Part, ...], proxies: Mapping[str, str]) -> tuple[Part, ...]:
    """The parts with some addresses replaced: `storage`, `scheduler`, `standby` name who listens
    behind the proxy whose host:port is given; `etcd@scheduler` is etcd for that part alone."""
    listening = {part.name: part.env.get("MUSTER_LISTEN", "") for part in parts}
    swaps = {listening[name]: at for name, at in proxies.items() if name in listening}

    def swapped(value: str) -> str:
        return ",".join(swaps.get(word, word) for word in value.split(","))

    changed = []
    for part in parts:
        dialled = ("MUSTER_STORAGE", "MUSTER_SCHEDULERS")
        env = {k: swapped(v) if k in dialled else v for k, v in part.env.items()}
        if part.name in proxies and part.name != "storage":
            # What agents and gateways are told to dial.
            env["MUSTER_ADVERTISE"] = proxies[part.name]
        if f"etcd@{part.name}" in proxies:
            env["MUSTER_ETCD_ENDPOINTS"] = proxies[f"etcd@{part.name}"]
        changed.append(replace(part, env=env))
    return tuple(changed)


def with_standby(parts: tuple[Part, ...], state: StateDir, ports: Mapping[str, int]) -> list[Part]:
    """The parts and a second scheduler, known to all."""
    own = f"{LOOPBACK}:{ports[STANDBY]}"
    out: list[Part] = []
    for part in parts:
        env = dict(part.env)
        if "MUSTER_SCHEDULERS" in env:
            env["MUSTER_SCHEDULERS"] += f",{own}"
        out.append(replace(part, env=env))
        if part.name == "scheduler":
            second = env | {
                "MUSTER_LISTEN": own,
                "MUSTER_METRICS_LISTEN": f"{LOOPBACK}:{ports[f'{STANDBY}_metrics']}",
                "MUSTER_STATE_DIR": str(state.service_dir(STANDBY)),
            }
            out.append(
                replace(
                    part,
                    name=STANDBY,
                    env=second,
                    cwd=state.service_dir(STANDBY),
                    ready_port=ports[f"{STANDBY}_metrics"],
                )
            )
    return out


def held(part: Part, holds: Path) -> Part:
    """The part, started only while no file of its name lies in `holds`."""
    argv = ("/bin/sh", "-c", _WAIT_WHILE_HELD, str(holds / part.name), *part.argv)
    return replace(part, argv=argv)


def placed(part: Part, namespaces: Mapping[str, str], clocks: str) -> Part:
    """The part on its own host, and with its own wall clock, where it is to have them."""
    argv, env = part.argv, dict(part.env)
    if part.name in namespaces:
        argv = ("nsenter", f"--net={namespaces[part.name]}", *argv)
    if clocks and part.name not in ("etcd", "redis"):
        told = WallClock.environ(clocks, part.name)
        found = (told["PYTHONPATH"], env.get("PYTHONPATH", ""))
        env |= {**told, "PYTHONPATH": ":".join(filter(None, found))}
    return replace(part, argv=argv, env=env)


def tapped(part: Part, spec: Mapping[str, Any], ports: Mapping[str, int]) -> Part:
    """The part with what its stores are told, and with `taps` (host:port by `redis`, `etcd`) in
    place of them for who calls them."""
    argv, env = part.argv, dict(part.env)
    if part.name == "etcd":
        argv = (*argv, *spec["etcd_args"])
    if part.name == "storage":
        # The books are made from the log, and it drops its oldest.
        env["MUSTER_EVENTS_KEPT"] = str(EVENTS_KEPT)
        if spec["weak"]:
            env["MUSTER_ALLOW_WEAK_REDIS"] = "1"
    for key, name in (("MUSTER_REDIS_URL", "redis"), ("MUSTER_ETCD_ENDPOINTS", "etcd")):
        if key in env and name in spec["taps"]:
            env[key] = env[key].replace(f"{LOOPBACK}:{ports[name]}", spec["taps"][name])
    return replace(part, argv=argv, env=env)


def main() -> int:
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    die_with_parent(spec["parent"], signal.SIGTERM)
    state = open_state_dir(Path(spec["state_dir"]))
    lock = ClusterLock(state)
    lock.acquire()
    try:
        return _run(spec, state)
    except (MusterError, OSError) as error:
        print(f"the cluster cannot start: {error}", file=sys.stderr)
        return 1
    finally:
        lock.release()


def _run(spec: Mapping[str, Any], state: StateDir) -> int:
    remembered = load_remembered(state)
    ports = choose_ports(
        remembered.ports,
        http=None,
        free=is_free,
        pick=lambda: random.SystemRandom().choice(PORTS),
        names=(*PORT_NAMES, STANDBY, f"{STANDBY}_metrics"),
    )
    store_remembered(state, replace(remembered, ports=ports))
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MUSTER_")}
    for name in ("MUSTER_ETCD", "MUSTER_REDIS"):
        if name in os.environ:
            environ[name] = os.environ[name]
    plan = ClusterPlan(
        state=state,
        ports=ports,
        join_secret=remembered.join_secret,
        redis_password=remembered.redis_password,
        python=sys.executable,
        etcd=str(find_etcd(os.environ)),
        redis=str(find_redis(os.environ)),
        agents=spec["agents"],
        agent_cpu=str(cpu_count()),
        agent_memory=fair_share(spec["agents"], memory_bytes()),
        skills=(spec["skills"],),
        work_dir=Path(spec["work_dir"]),
        environ=environ,
    )
    api_key, _ = admin_key(state)
    write_private(plan.redis_conf, redis_config(plan))
    parts = [
        held(
            placed(tapped(part, spec, ports), spec["namespaces"], spec["clocks"]),
            Path(spec["holds"]),
        )
        for part in detours(tuple(with_standby(parts_of(plan), state, ports)), spec["proxies"])
    ]

    def ready(_halt: str) -> None:
        facts = {
            "url": plan.url,
            "api_key": api_key,
            "ports": ports,
            "join_secret": remembered.join_secret,
            "redis_password": remembered.redis_password,
        }
        print(json.dumps(facts), flush=True)

    def tell(sentence: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)

    running = run_cluster(
        plan,
        api_key=api_key,
        on_ready=ready,
        tell=tell,
        parts=parts,
    )
    return 0 if asyncio.run(running) else 1


if __name__ == "__main__":
    sys.exit(main())
