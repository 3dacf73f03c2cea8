"""An agent that has gone over to another monitor is not told to be silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tests.polling import eventually
from tests.service_process import SECRET

from muster.api.v1 import monitor_pb2 as pb
from muster.api.v1 import monitor_pb2_grpc
from muster.domain.ids import AgentId
from muster.rpc.server import RpcServer
from muster_monitor.judge import look, sweep
from muster_monitor.mass_failure import AGENT_SUSPECTED
from muster_monitor.other_monitors import OverruledSuspicions, follow_monitor
from muster_monitor.state import MonitorState

A, B, C = AgentId("a"), AgentId("b"), AgentId("c")


def test_a_suspicion_is_overruled_until_it_ends_here() -> None:
    overruled = OverruledSuspicions()
    assert overruled.among([A]) == set()
    overruled.hears("m2", [A, B])
    assert overruled.among([A, C]) == {A}
    # The other monitor dies: nothing is known anew of its agents.
    overruled.gone("m2")
    assert overruled.among([A, C]) == {A}
    assert overruled.among([C]) == set()
    # Suspected anew, and nobody contradicts.
    assert overruled.among([A, C]) == set()


def test_an_agent_that_the_other_one_lost_is_not_heard_there() -> None:
    overruled = OverruledSuspicions()
    overruled.hears("m2", [A, B])
    overruled.hears("m2", [], lost=[A])
    assert overruled.among([A, B]) == {B}


def told(state: MonitorState) -> list[tuple[str, bool]]:
    return [(f.rule, f.active) for _, f in state.findings.take()]


def test_only_who_is_silent_everywhere_is_told() -> None:
    state = MonitorState()
    for agent in (A, B):
        state.senses.registered(agent, {}, ())
        state.table.observe(agent, 1, 0)
    state.overruled.hears("m2", [A])
    for now_ms in range(0, 12_000, 100):
        look(state, now_ms, now_ms)
        if now_ms % 1_000 == 0:
            sweep(state, now_ms, now_ms)
    assert state.table.is_suspected(A)
    assert state.table.is_suspected(B)
    assert [f.labels["agent"] for f in state.findings.standing.values()] == [B]
    assert told(state) == [(AGENT_SUSPECTED, True)]


class OtherMonitor(monitor_pb2_grpc.MonitorServiceServicer):
    """Hears `a`, suspects `b`, and says no more."""

    async def WatchFailures(
        self, request: Any, context: Any
    ) -> AsyncIterator[pb.WatchFailuresResponse]:
        yield pb.WatchFailuresResponse(
            snapshot=True,
            suspicions=[
                pb.Suspicion(agent="a", incarnation=1),
                pb.Suspicion(agent="b", incarnation=1, suspected=True),
                pb.Suspicion(agent="c", incarnation=1, unheard=True),
            ],
        )
        await asyncio.Event().wait()


async def test_another_monitor_is_followed_and_one_that_falls_silent_is_left() -> None:
    server = RpcServer("127.0.0.1:0", secret=SECRET, service="monitor")
    server.add(monitor_pb2_grpc.add_MonitorServiceServicer_to_server, OtherMonitor())  # type: ignore[abstract]
    port = await server.start()
    overruled = OverruledSuspicions()
    seen: list[set[AgentId]] = []

    def now() -> set[AgentId]:
        """Without memory, so that both ways are seen."""
        overruled.among([])
        seen.append(overruled.among([A, B, C]))
        return seen[-1]

    work = asyncio.create_task(follow_monitor(f"127.0.0.1:{port}", SECRET, overruled, 0.2))
    try:
        await eventually(lambda: now() == {A}, work)
        await eventually(lambda: now() == set(), work)
        await eventually(lambda: now() == {A}, work)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await server.stop(0)
    assert {frozenset(s) for s in seen} <= {frozenset(), frozenset({A})}
