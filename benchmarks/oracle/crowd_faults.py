"""Faults 28 and 34: most agents gone at once, and one that comes and goes."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil

from benchmarks.oracle.agent_faults import AgentFault
from benchmarks.oracle.checker import Expectation
from benchmarks.oracle.cluster import BACK_WITHIN_S, until
from benchmarks.oracle.load import Shape
from benchmarks.oracle.scene import Books, Ground, Limits, Scene, Strike

SHARE = 0.6
# Beyond the time in which silent agents without a lease are given up.
AWAY_S = 30.0
FLAPS, FLAPS_SHORT = 10, 2
# After a quarantine a task must be there to be the probe; that is what the trickle is for.
PAROLE_WITHIN_S = 180.0
# The whole log is read each time.
_LOOK_S = 0.3
_RUNTIME = "muster.agent.runtime_process"


class MostVanish(Ground):
    """Fault 28: killed with their supervisors, so that nobody is left to say so."""

    number = "28"
    name = "60 % of agents vanish"
    limits = Limits(detection_s=13.0, also="evictions stop, an alarm is raised and lifted")
    agents = 5

    def shape(self, tasks: int, short: bool) -> Shape:  # noqa: ARG002
        # `stop` tasks are given away after 13 s whoever vanished with their agent.
        return Shape(tasks, stop=False)

    def strike(self, scene: Scene) -> Strike:
        cluster = scene.cluster
        scene.await_moment()
        # Of three, fewer than all are too few to say so.
        count = max(3, round(SHARE * len(cluster.agent_ids)))
        gone = sorted(scene.chance.sample(cluster.agent_ids, count))
        trees = [process for ident in gone for process in cluster.tree(ident)]
        position = cluster.log_position()
        for ident in gone:
            cluster.hold(ident)
        strike = Strike(time.monotonic(), 0.0, Expectation(frozenset(gone), deaths=True))
        for process in trees:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        try:
            until(lambda: any(_alarms(scene, position)), "an alarm", BACK_WITHIN_S)
            if not scene.short:
                time.sleep(max(0.0, strike.struck_s + AWAY_S - time.monotonic()))
        finally:
            strike.healed_s = time.monotonic()
            for ident in gone:
                cluster.release(ident)
        cluster.await_healthy()
        strike.recoveries_s.append(time.monotonic() - strike.healed_s)
        until(lambda: "" in _alarms(scene, position), "the end of the alarm", BACK_WITHIN_S)
        return strike

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:  # noqa: ARG002
        """Detection: until the alarm."""
        raised = [e.at_s for e in books.events if e.alarm and e.why and e.at_s > strike.struck_s]
        strike.detections_s += [at_s - strike.struck_s for at_s in raised[:1]]
        evicted = [
            event.agent
            for event in books.events
            if event.agent_state == "DOWN" and strike.struck_s < event.at_s < strike.healed_s
        ]
        strike.demand(not evicted, f"{', '.join(evicted)} were given up meanwhile")


def _alarms(scene: Scene, position: str) -> list[str]:
    """What was said of alarms since then; empty for the end of one."""
    cluster = scene.cluster
    time.sleep(_LOOK_S)
    events = cluster.events(position, cluster.log_position())
    return [event.why for event in events if event.alarm]


class Flapping(AgentFault):
    """Fault 34: an agent more whose runtime dies each time that it is there again."""

    number = "34"
    name = "agent flaps 10×"
    limits = Limits(also="quarantined, later paroled and used again")

    def shape(self, tasks: int, short: bool) -> Shape:
        return Shape(tasks, stop=not short)

    def strike(self, scene: Scene) -> Strike:
        cluster = scene.cluster
        ident = f"flapper-{scene.load.run}"
        flapper = cluster.start_agent_like(cluster.agent_ids[0], ident, {})
        states = cluster.agent_states
        until(lambda: states().get(ident) == "READY", f"{ident} READY", BACK_WITHIN_S)
        strike = Strike(time.monotonic(), 0.0, Expectation(frozenset({ident}), deaths=True))
        try:
            self._flap(scene, strike, ident, flapper.pid)
            strike.healed_s = time.monotonic()
            if scene.short:
                # The way to a quarantine is long: a supervisor waits ever longer.
                rest = cluster.rest()
                strike.notes["health"] = rest.get(f"/v1/agents/{ident}")["health"]
                rest.close()
                strike.demand(strike.notes["health"] < 0.9, "it is thought to be well")
                return strike
            until(lambda: states().get(ident) in ("PAROLE", "READY"), "its parole", PAROLE_WITHIN_S)
            until(lambda: states().get(ident) == "READY", "its probe", PAROLE_WITHIN_S)
            strike.recoveries_s.append(time.monotonic() - strike.healed_s)
        finally:
            flapper.terminate()
            flapper.wait(BACK_WITHIN_S)
        return strike

    def _flap(self, scene: Scene, strike: Strike, ident: str, supervisor: int) -> None:
        """Until it is quarantined, and so often at most."""
        states = scene.cluster.agent_states
        seen: set[int] = set()
        for flap in range(1, (FLAPS_SHORT if scene.short else FLAPS) + 1):
            runtime: psutil.Process = until(
                lambda: _runtime(supervisor, seen), "its runtime", BACK_WITHIN_S
            )
            seen.add(runtime.pid)
            with suppress(ProcessLookupError):
                os.kill(runtime.pid, signal.SIGKILL)
            state: str = until(
                lambda: (
                    _back(states().get(ident, ""))
                    and _runtime(supervisor, seen)
                    and states().get(ident)
                ),
                f"{ident} back",
                BACK_WITHIN_S,
            )
            strike.notes["flaps"] = flap
            if state == "QUARANTINED":
                strike.detections_s.append(time.monotonic() - strike.struck_s)
                return
        strike.demand(scene.short, f"{ident} was not quarantined after {FLAPS} flaps")

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        if scene.short:
            return
        (ident,) = strike.expectation.harmed
        was = [event.agent_state for event in books.events if event.agent == ident]
        for state in ("QUARANTINED", "PAROLE"):
            strike.demand(state in was, f"no event says that {ident} was {state}")
        after = was[was.index("PAROLE") :] if "PAROLE" in was else []
        strike.demand("READY" in after, f"{ident} was not used again")


def _back(state: str) -> bool:
    return state in ("READY", "QUARANTINED")


def _runtime(supervisor: int, seen: set[int]) -> psutil.Process | None:
    """One that was not killed yet."""
    with suppress(psutil.Error):
        for process in psutil.Process(supervisor).children(recursive=True):
            if process.pid not in seen and _RUNTIME in process.cmdline():
                return process
    return None
