"""kill -9 of each process of a cluster in turn: it comes back, and tasks come through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e.test_up_cli import MUSTER, Cli, alive, eventually
from tests.polling import HANG_S

from muster.local.ports import SERVICES


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    cli = Cli(tmp_path_factory.mktemp("cluster"))
    try:
        cli.up("--agents", "2")
        yield cli
    finally:
        cli.run("down", "--state-dir", str(cli.state))


def child(cli: Cli, name: str) -> psutil.Process | None:
    """The present process of a part: its own folder and its program tell it apart."""
    parent = psutil.Process(int((cli.state / "lock").read_text()))
    marks = {"etcd": "--name=muster", "redis": "redis-server"}
    marks |= dict.fromkeys(("agent-1", "agent-2"), "muster.agent")
    for process in parent.children():
        try:
            here = name.startswith("agent") <= (Path(process.cwd()).name == name)
            if here and marks.get(name, f"muster_{name}") in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


@pytest.mark.parametrize("name", ["etcd", "redis", *SERVICES, "agent-1"])
def test_a_killed_process_comes_back_and_no_task_is_lost(cluster: Cli, name: str) -> None:
    argv = {"argv": ["sh", "-c", "sleep 1; echo done"]}
    ids = [cluster.ok("submit", "command", "--input", json.dumps(argv)).strip() for _ in range(4)]
    killed = child(cluster, name)
    assert killed is not None
    killed.kill()
    eventually(lambda: (child(cluster, name) or killed).pid != killed.pid)
    for ident in ids:
        result = json.loads(cluster.at_last("result", ident, "--wait"))
        assert (result["exit_code"], result["stdout"]) == (0, "done\n")
    assert json.loads(cluster.at_last("submit", "echo", "--input", "7", "--wait")) == 7
    eventually(lambda: own_agents_are_ready(cluster))


# Says when it begins and when it ends, and stays for as long as no gate is open.
BEGUN = ["begin 1 a", "begin 1 b"]
STAYS = """
echo "begin $MUSTER_ATTEMPT $1" >> marks
while [ ! -e gate ]; do sleep 0.1; done
echo "end $MUSTER_ATTEMPT $1" >> marks
"""


def test_tasks_held_for_a_hung_runtime_run_again_on_it_once(cluster: Cli, tmp_path: Path) -> None:
    """Nobody else may take them: they wait until the runtime has been killed whole and replaced."""
    eventually(lambda: own_agents_are_ready(cluster))
    for name in "ab":
        argv = {"argv": ["sh", "-c", f"cd {tmp_path}\n{STAYS}", "stays", name]}
        where = ("--constraint", "agent.id==agent-2")
        cluster.ok("submit", "command", "--input", json.dumps(argv), *where)
    marks = tmp_path / "marks"
    eventually(lambda: marks.exists() and sorted(marks.read_text().split("\n")[:-1]) == BEGUN)
    agent = child(cluster, "agent-2")
    assert agent is not None
    below = agent.children(recursive=True)
    (runtime,) = (p for p in below if "muster.agent.runtime_process" in p.cmdline())
    runtime.send_signal(signal.SIGSTOP)
    eventually(lambda: "begin 2 a" in marks.read_text() and "begin 2 b" in marks.read_text())
    assert alive(below) == []
    (tmp_path / "gate").touch()
    eventually(lambda: marks.read_text().count("end") == 2)
    eventually(lambda: own_agents_are_ready(cluster))
    said = sorted(marks.read_text().split("\n")[:-1])
    assert said == [*BEGUN, "begin 2 a", "begin 2 b", "end 2 a", "end 2 b"]

    def newest() -> Any:
        found = json.loads(cluster.at_last("recoveries", "--agent", "agent-2", "--json"))["items"]
        return found[0]

    eventually(lambda: bool(newest()["outcome"] == "rerun"))
    assert (newest()["kind"], newest()["rerun"], newest()["moved"]) == ("hung", 2, 0)


def own_agents_are_ready(cluster: Cli) -> bool:
    """An agent that another test ran by hand is still shown for a while after it has left."""
    shown = json.loads(cluster.at_last("agents", "--json"))["items"]
    own = [a for a in shown if a["id"] in ("agent-1", "agent-2")]
    return [a["state"] for a in own] == ["READY", "READY"]


def test_agents_and_services_can_be_run_by_hand(cluster: Cli) -> None:
    remembered = json.loads((cluster.state / "cluster.json").read_text())
    secret = cluster.folder / "secret"
    secret.write_text(remembered["join_secret"] + "\n")
    with subprocess.Popen(
        [
            *(MUSTER, "agent", "run", "--id", "by-hand", "--cpu", "1", "--memory", "64Mi"),
            *("--registry", f"127.0.0.1:{remembered['ports']['registry']}"),
            *("--labels", "place=hand", "--join-secret-file", str(secret)),
            *("--state-dir", str(cluster.folder / "by-hand")),
        ],
        env=cluster.environ,
        stderr=subprocess.DEVNULL,
    ) as agent:
        tree = psutil.Process(agent.pid)
        try:
            ident = cluster.ok("submit", "echo", "--constraint", "place==hand").strip()
            cluster.ok("result", ident, "--wait")
            assert cluster.json("task", ident)["agent"] == "by-hand"
            below = tree.children(recursive=True)
        finally:
            agent.terminate()
        assert agent.wait(HANG_S) == 0
    assert alive(below) == []
    environ = {"PATH": os.environ["PATH"], "MUSTER_JOIN_SECRET": "x"}
    refused = subprocess.run(
        [MUSTER, "service", "gateway"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert refused.returncode == 78
    assert "MUSTER_JOIN_SECRET" in refused.stderr
