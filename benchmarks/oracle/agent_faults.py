"""Faults of agents: killed, paused, drained, and skills that take them along."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil

from benchmarks.oracle.checker import Expectation
from benchmarks.oracle.cluster import BACK_WITHIN_S, alive, until
from benchmarks.oracle.load import Shape
from benchmarks.oracle.scene import Books, Scene, Strike

# Children of a killed process are killed by the kernel and by sweeps; the last one comes 1 s on.
CHILDREN_GONE_S = 5.0
# What the catalogue demands, for the 99th percentile over the seeds.
RUNTIME_SEEN_S, AGENT_SEEN_S = 1.0, 13.0


class AgentFault:
    """A fault of one agent, whose tasks go to others."""

    number = ""
    name = ""
    demands = ""
    proxied = False

    def shape(self, tasks: int, short: bool) -> Shape:
        return Shape(tasks)

    def strike(self, scene: Scene) -> Strike:
        raise NotImplementedError

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        """Detection: the first event that gives the agent up. Recovery: for each task that ran
        there, until it ran again."""
        for agent in strike.expectation.harmed:
            seen = books.first_agent_change(
                agent, ("DOWN", "JOINING", "RESTARTING", "LEFT"), strike.struck_s - 0.01
            )
            strike.demand(seen is not None, f"no event says that {agent} was lost")
            if seen is not None:
                strike.detections_s.append(max(0.0, seen.at_s - strike.struck_s))
        harmed = sorted(strike.expectation.harmed)
        strike.recoveries_s += books.resumed_s(harmed, strike.struck_s)


def busy_agent(scene: Scene) -> str:
    """A seeded agent that runs something now."""
    ident = scene.chance.choice(scene.cluster.agent_ids)

    def runs() -> bool:
        pids = {mark.pid for mark in scene.load.side.running().values()}
        return any(process.pid in pids for process in scene.cluster.tree(ident))

    until(runs, f"a task on {ident}", BACK_WITHIN_S)
    return ident


def _await_gone(strike: Strike, processes: list[psutil.Process]) -> None:
    """Demands that none of the killed process's descendants lives on."""
    give_up_s = strike.struck_s + CHILDREN_GONE_S
    while (left := alive(processes)) and time.monotonic() < give_up_s:
        time.sleep(0.01)
    strike.notes["children_gone_s"] = time.monotonic() - strike.struck_s
    strike.notes["children"] = len(processes)
    strike.demand(not left, f"{len(left)} of {len(processes)} children live on")


class RuntimeKilled(AgentFault):
    """Fault 6, an agent's runtime."""

    number = "6a"
    name = "kill -9 agent runtime"
    demands = "detection p99 ≤ 1 s; its children are gone"

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        ident = busy_agent(scene)
        runtime = scene.cluster.runtime(ident)
        below = runtime.children(recursive=True)
        struck_s = time.monotonic()
        os.kill(runtime.pid, signal.SIGKILL)
        strike = Strike(struck_s, struck_s, Expectation(frozenset({ident}), deaths=True))
        _await_gone(strike, [runtime, *below])
        return strike


class AgentKilled(AgentFault):
    """Fault 6, a whole agent; with every other seed it stays away until it was given up."""

    number = "6b"
    name = "kill -9 whole agent"
    demands = "detection p99 ≤ 13 s; its children are gone"

    def strike(self, scene: Scene) -> Strike:
        cluster = scene.cluster
        scene.await_moment()
        ident = busy_agent(scene)
        tree = cluster.tree(ident)
        away = not scene.short and scene.chance.random() < 0.7
        if away:
            cluster.hold(ident)
        struck_s = time.monotonic()
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        strike = Strike(struck_s, struck_s, Expectation(frozenset({ident}), deaths=True))
        _await_gone(strike, tree)
        try:
            if away:
                states = cluster.agent_states
                until(lambda: states().get(ident) == "DOWN", f"{ident} DOWN", 60.0)
        finally:
            cluster.release(ident)
        strike.notes["stayed_away"] = float(away)
        return strike
