"""Devices of an agent, whole and in shares: no two tasks ever have more than all of one."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.e2e.test_up_cli import MUSTER, Cli, eventually
from tests.e2e.test_up_kills import child
from tests.polling import HANG_S

# Each attempt notes what it had and when, in a file of its own that no crash can tear.
SKILLS = """
import json
import os
import time
from pathlib import Path

from muster.skill import AsyncContext, Context, skill


def note(folder, ctx, share, begin):
    Path(folder, f"{ctx.task_id}-{ctx.attempt}-{begin}").write_text(json.dumps({
        "share": share, "devices": list(ctx.devices.get("gpu", ())), "begin": begin,
        "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"), "end": time.monotonic_ns()}))


@skill
def hold(folder: str, share: float, seconds: float, ctx: Context):
    begin = time.monotonic_ns()
    Path(folder, "begun").touch()
    time.sleep(seconds)
    note(folder, ctx, share, begin)
    return {"devices": dict(ctx.devices), "cuda": os.environ.get("CUDA_VISIBLE_DEVICES")}


@skill
async def ahold(folder: str, share: float, seconds: float, ctx: AsyncContext):
    import asyncio
    begin = time.monotonic_ns()
    await asyncio.sleep(seconds)
    note(folder, ctx, share, begin)
    return {"devices": dict(ctx.devices), "cuda": os.environ.get("CUDA_VISIBLE_DEVICES")}
"""
DEVICES = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A cluster whose only agent has four GPUs."""
    cli = Cli(tmp_path_factory.mktemp("cluster"))
    (cli.folder / "gpu_skills.py").write_text(SKILLS)
    try:
        cli.up("--agents", "0")
        remembered = json.loads((cli.state / "cluster.json").read_text())
        (cli.folder / "secret").write_text(remembered["join_secret"])
        with subprocess.Popen(
            [
                *(MUSTER, "agent", "run", "--id", "gpus", "--cpu", "8", "--memory", "4Gi"),
                *("--registry", f"127.0.0.1:{remembered['ports']['registry']}"),
                *("--resources", f"gpu={DEVICES}", "--skills", "gpu_skills"),
                *("--join-secret-file", str(cli.folder / "secret")),
                *("--state-dir", str(cli.folder / "agent")),
            ],
            env={**cli.environ, "PYTHONPATH": str(cli.folder), "CUDA_VISIBLE_DEVICES": "4,5,6,7"},
            cwd=cli.folder,
            stderr=subprocess.DEVNULL,
        ) as agent:
            tree = psutil.Process(agent.pid)
            try:
                yield cli
            finally:
                below = tree.children(recursive=True)
                tree.kill()
                for process in below:
                    # Some of these end by themselves as soon as the one above them has gone.
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
    finally:
        cli.run("down", "--state-dir", str(cli.state))


def ready(cli: Cli) -> bool:
    shown = json.loads(cli.at_last("agents", "--json"))["items"]
    return [a["state"] for a in shown] == ["READY"]


def result(cli: Cli, *argv: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(cli.at_last("submit", *argv, "--wait"))
    return found


def test_a_task_sees_its_devices_and_no_others(cluster: Cli, tmp_path: Path) -> None:
    eventually(lambda: ready(cluster))
    given = json.dumps({"folder": str(tmp_path), "share": 1, "seconds": 0})
    pair = result(cluster, "hold", "--input", given, "--gpu", "2")
    assert pair == {"devices": {"gpu": [0, 1]}, "cuda": "4,5"}
    half = result(cluster, "ahold", "--input", given, "--gpu", "500m")
    assert half == {"devices": {"gpu": [0]}, "cuda": "4"}
    assert result(cluster, "hold", "--input", given) == {"devices": {}, "cuda": ""}
    show = "echo $CUDA_VISIBLE_DEVICES:$MUSTER_DEVICES"
    command = json.dumps({"argv": ["sh", "-c", show]})
    ran = result(cluster, "command", "--input", command, "--gpu", "1")
    assert ran["stdout"] == '4:{"gpu":[0]}\n'
    assert result(cluster, "command", "--input", command)["stdout"] == ":\n"


def test_neither_whole_nor_a_share_of_one_is_refused(cluster: Cli) -> None:
    refused = cluster.run("submit", "echo", "--gpu", "1500m")
    assert refused.returncode == 2
    told = " ".join(refused.stderr.split())
    assert "resources.gpu" in told
    assert "must be a whole number of devices or a fraction of one" in told


def test_tasks_never_share_more_than_a_device_though_the_leader_is_killed(
    cluster: Cli, tmp_path: Path
) -> None:
    eventually(lambda: ready(cluster))
    shares = [("500m", 0.5), ("1", 1.0), ("2", 1.0), ("250m", 0.25), ("700m", 0.7)]
    lines = []
    for number in range(40):
        gpu, share = shares[number % len(shares)]
        given = {"folder": str(tmp_path), "share": share, "seconds": 0.2}
        skill = "ahold" if number % 3 == 0 else "hold"
        lines.append({"skill": skill, "input": given, "resources": {"gpu": gpu, "cpu": "100m"}})
    tasks = cluster.folder / "tasks.jsonl"
    tasks.write_text("\n".join(json.dumps(line) for line in lines))
    ids = cluster.ok("submit", "--file", str(tasks)).split()
    eventually((tmp_path / "begun").exists)
    leader = child(cluster, "scheduler")
    assert leader is not None
    leader.kill()
    for ident in ids:
        cluster.at_last("result", ident, "--wait")
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("*-*")]
    assert len(notes) >= len(ids)
    assert most_at_once(notes) <= 1.0
    wanted = {"gpu": 0}

    def idle() -> bool:
        (agent,) = json.loads(cluster.at_last("agents", "--json"))["items"]
        used = agent["used"]
        return {"gpu": used.get("gpu", 0)} == wanted

    eventually(idle, HANG_S)


def most_at_once(notes: list[dict[str, object]]) -> float:
    """The largest sum of shares that one device ever bore."""
    changes: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for note in notes:
        assert isinstance(note["devices"], list)
        assert note["devices"], "an attempt without a device"
        # What CUDA was told agrees: the agent itself may see 4 to 7.
        assert note["cuda"] == ",".join(str(4 + index) for index in note["devices"])
        for index in note["devices"]:
            changes[index] += [(note["begin"], note["share"]), (note["end"], -note["share"])]  # type: ignore[list-item, operator]
    most = 0.0
    assert set(changes) <= set(range(DEVICES))
    for events in changes.values():
        load = 0.0
        for _, change in sorted(events):
            load = round(load + change, 6)
            most = max(most, load)
    return most
