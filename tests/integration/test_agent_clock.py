"""An agent whose wall clock jumps by an hour: times that are shown are wrong, nothing else is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from tests.agent_cluster import Cluster, T, until

from muster.rpc.clock import wall_ms

HOUR_S = 3_600
# Imported by every Python process of the agent before anything else.
SITE = """
import os, time

_SHIFT = os.environ.get("TEST_CLOCK_SHIFT", "")
_time, _time_ns = time.time, time.time_ns


def _shift_s():
    try:
        with open(_SHIFT) as source:
            return int(source.read() or 0)
    except OSError:
        return 0


if _SHIFT:
    time.time = lambda: _time() + _shift_s()
    time.time_ns = lambda: _time_ns() + _shift_s() * 1_000_000_000
"""
SKILLS = """
    import pathlib, time
    from muster.skill import skill

    @skill
    def nap(release: str):
        print("wall", int(time.time()))
        while not pathlib.Path(release).exists():
            time.sleep(0.01)
        return int(time.time())
"""


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.mark.parametrize("shift_s", [HOUR_S, -HOUR_S])
async def test_a_jump_of_the_wall_clock_ends_nothing_early(
    cluster: Cluster, tmp_path: Path, shift_s: int
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    shift = tmp_path / "shift"
    await cluster.agent(
        SKILLS,
        PYTHONPATH=str(site),
        TEST_CLOCK_SHIFT=str(shift),
        MUSTER_AGENT_PASS_ENV="MUSTER_TEST_MARK,TEST_CLOCK_SHIFT,PYTHONPATH",
    )
    leader = cluster.leader
    # Under way while the clock jumps, with a timeout that an hour would have passed by far.
    release = tmp_path / "release"
    nap = {"release": str(release)}
    key = leader.give("nap", nap, timeout_ms=600_000)
    stopping = leader.give("nap", nap, on_disconnect=T.ON_DISCONNECT_STOP)
    await until(lambda: {key, stopping} <= set(leader.started), "their start")
    shift.write_text(str(shift_s))
    # Deadlines and silence are looked at meanwhile.
    beats = leader.beats
    await until(lambda: leader.beats > beats + 3, "beats after the jump")
    release.touch()
    for one in (key, stopping):
        outcome = await leader.outcome(one)
        assert outcome.kind == T.OUTCOME_KIND_SUCCEEDED, outcome
        # The clock did jump, and that is all that shows of it.
        seen_s = orjson.loads(outcome.output_json)
        assert abs(seen_s - wall_ms() / 1000 - shift_s) < 300
    assert await leader.result("echo", "afterwards", timeout_ms=600_000) == "afterwards"
    endless = {"release": str(tmp_path / "never")}
    timed_out = await leader.outcome(leader.give("nap", endless, timeout_ms=200))
    assert timed_out.kind == T.OUTCOME_KIND_TIMED_OUT
    await until(lambda: key[0] in cluster.monitor.ends, "its log")
    shift.write_text("0")
    assert await leader.result("echo", "and back", timeout_ms=600_000) == "and back"
    assert len(leader.hellos) == 1, "the session was lost"
