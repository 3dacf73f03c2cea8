"""Faults 22, 23 and 25: agents that are cut off in both directions, in one, or nearly.

Each agent is a host of its own: what is lost are packets, between kernels that know nothing of it.
"""

from __future__ import annotations

import time

from benchmarks.oracle.agent_faults import AGAIN_S, AgentFault
from benchmarks.oracle.checker import Expectation
from benchmarks.oracle.cluster import BACK_WITHIN_S, until
from benchmarks.oracle.load import Load, Shape
from benchmarks.oracle.rest import Refused
from benchmarks.oracle.scene import Books, Limits, Scene, Strike

PARTITION_S = 60.0
# Longer than a `stop` task may run on at a cut-off agent, so that it would overlap if it did.
SLOW_S, SLOW_SHORT_S = 40.0, 14.0
_CANCELLED = ("SUCCEEDED", "CANCELLED")
_SUSPECT_OR_WORSE = frozenset({"SUSPECT", "DOWN"})


class Partitioned(AgentFault):
    """Fault 22: cut off for a minute while it runs tasks of both kinds."""

    number = "22"
    name = "agent partitioned 60 s, healed"
    limits = Limits(
        detection_s=13.0,
        again_s=AGAIN_S,
        also="`stop` never overlaps, late `keep` outcomes fenced",
    )
    wired = True
    part_s = PARTITION_S

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        ident, slow = busy_with_both_kinds(scene)
        wire = scene.cluster.wire(ident)
        struck_s = time.monotonic()
        self.part(scene, ident)
        strike = Strike(struck_s, 0.0, Expectation(frozenset({ident}), deaths=True))
        try:
            states = scene.cluster.agent_states
            until(lambda: states().get(ident) == "DOWN", f"{ident} DOWN", BACK_WITHIN_S)
            until(lambda: _all_again(scene.load, slow), "tasks elsewhere", BACK_WITHIN_S)
            if not scene.short:
                time.sleep(max(0.0, struck_s + self.part_s - time.monotonic()))
        finally:
            strike.healed_s = time.monotonic()
            strike.notes["packets_lost"] = wire.up.dropped + wire.down.dropped
            wire.heal()
        if scene.short:
            _cancel(scene, slow)
        else:
            self.await_fenced(scene, strike, ident)
        return strike

    def part(self, scene: Scene, ident: str) -> None:
        scene.cluster.wire(ident).part()

    def await_fenced(self, scene: Scene, strike: Strike, ident: str) -> None:
        """Until the agent is back: it has then brought what it did meanwhile."""
        states = scene.cluster.agent_states
        until(lambda: states().get(ident) == "READY", f"{ident} READY", BACK_WITHIN_S)
        strike.notes["back_s"] = time.monotonic() - strike.healed_s

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        super().judge(scene, strike, books)
        (ident,) = strike.expectation.harmed
        stops = {task for entry in scene.load.journal.entries() if entry.stop for task in entry.ids}
        own = {
            (event.task, event.attempt)
            for event in books.events
            if event.agent == ident and event.at_s <= strike.struck_s
        }
        last = {(m.task, m.attempt): m for m in books.marks}
        open_then = {key: m for key, m in last.items() if key in own and m.at_s > strike.struck_s}
        ran_s = [m.at_s - strike.struck_s for (task, _), m in open_then.items() if task in stops]
        strike.notes["stop_ran_on_s"] = max(ran_s, default=0.0)
        strike.demand(bool(ran_s), f"no `stop` task ran on {ident}")
        late = [
            task
            for (task, attempt), mark in open_then.items()
            if task not in stops and mark.phase == "end" and books.records[task].attempt > attempt
        ]
        strike.notes["late_keep_ends"] = len(late)
        # In the short form the tasks are ended before they can be late.
        strike.demand(scene.short or bool(late), f"no `keep` task ended late on {ident}")


class OneWayPartition(Partitioned):
    """Fault 23: what it says is lost, or what it is told, with either of which TCP stalls."""

    number = "23"
    name = "one-way partition of an agent"
    # Where only what it is told is lost, the first beat to the registry after the cut arrives all
    # the same, up to 3 s later, and its lease lives 10 s from then: 13 s, and half a second until
    # etcd looks for ends of leases, and a second until the leader looks. (With no answer TCP then
    # sends the same again and nothing new, so that a second beat does not arrive.) The rest is for
    # a machine that stalls.
    limits = Limits(detection_s=16.0, again_s=AGAIN_S, also=Partitioned.limits.also)

    def part(self, scene: Scene, ident: str) -> None:
        mute = scene.chance.random() < 0.5
        scene.cluster.wire(ident).part(up=mute, down=not mute)

    def strike(self, scene: Scene) -> Strike:
        if not scene.short:
            return super().strike(scene)
        return self._glimpse(scene)

    def _glimpse(self, scene: Scene) -> Strike:
        """Until the leader doubts; what a machine that stalls makes of it is allowed."""
        scene.await_moment()
        ident = scene.chance.choice(scene.cluster.agent_ids)
        strike = Strike(time.monotonic(), 0.0, Expectation(frozenset({ident}), deaths=True))
        self.part(scene, ident)
        try:
            states = scene.cluster.agent_states
            until(
                lambda: states().get(ident) in _SUSPECT_OR_WORSE, f"{ident} SUSPECT", BACK_WITHIN_S
            )
        finally:
            strike.healed_s = time.monotonic()
            scene.cluster.wire(ident).heal()
        return strike

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        if not scene.short:
            super().judge(scene, strike, books)
            return
        (ident,) = strike.expectation.harmed
        seen = books.first_agent_change(ident, ("SUSPECT",), strike.struck_s - 0.01)
        strike.demand(seen is not None, f"no event says that {ident} was doubted")


class LossyNetwork(AgentFault):
    """Fault 25: every agent's packets, of both directions."""

    number = "25"
    name = "10 % loss, 200 ms delay for 2 min"
    limits = Limits(also="0 false deaths")
    wired = True
    loss, delay_s = 0.10, 0.2
    lasts_s, lasts_short_s = 120.0, 6.0

    def shape(self, tasks: int, short: bool) -> Shape:
        # TCP carries some 10 KiB/s over such a wire, and each task takes about one.
        return Shape(min(tasks, 200), stop=not short, trickle_pause_s=0.5)

    def strike(self, scene: Scene) -> Strike:
        wires = scene.cluster.wires
        strike = Strike(time.monotonic())
        for wire in wires:
            wire.spoil(loss=self.loss, delay_s=self.delay_s)
        try:
            time.sleep(self.lasts_short_s if scene.short else self.lasts_s)
        finally:
            strike.healed_s = time.monotonic()
            ways = [way for wire in wires for way in (wire.up, wire.down)]
            dropped = sum(way.dropped for way in ways)
            strike.notes["packets"] = dropped + sum(way.passed for way in ways)
            strike.notes["packets_lost"] = dropped
            for wire in wires:
                wire.heal()
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        ended = sum(e.state == "SUCCEEDED" and e.at_s < strike.healed_s for e in books.events)
        strike.notes["ended_meanwhile"] = ended
        strike.demand(scene.short or ended > 0, "nothing was done meanwhile")


def busy_with_both_kinds(scene: Scene) -> tuple[str, list[str]]:
    """A seeded agent that runs long tasks, `keep` and `stop`; and the ids of all such tasks."""
    load = scene.load
    ms = (SLOW_SHORT_S if scene.short else SLOW_S) * 1e3
    expected = _CANCELLED if scene.short else _CANCELLED[:1]
    kinds = ("pulse", "pulse_beside") * 3

    def send(stop: bool) -> list[str]:
        tasks = [load.task(kind, ms, stop=stop, priority=100) for kind in kinds]
        return load.submit(tasks, stop=stop, expected=expected)

    keep, stop = send(False), send(True)

    def begun() -> dict[str, int]:
        running = load.side.running()
        pids = {task: mark.pid for (task, _), mark in running.items()}
        return pids if all(task in pids for task in (*keep, *stop)) else {}

    pids: dict[str, int] = until(begun, "slow tasks", BACK_WITHIN_S)
    holders = []
    for ident in scene.cluster.agent_ids:
        own = {process.pid for process in scene.cluster.tree(ident)}
        if all(any(pids[task] in own for task in some) for some in (keep, stop)):
            holders.append(ident)
    assert holders, "no agent runs tasks of both kinds"
    return scene.chance.choice(holders), [*keep, *stop]


def _all_again(load: Load, slow: list[str]) -> bool:
    """Whether a later attempt has begun of some slow task that must not overlap and of some
    other."""
    stops = {task for entry in load.journal.entries() if entry.stop for task in entry.ids}
    again = {task for task, attempt in load.side.running() if attempt > 1 and task in slow}
    return bool(again & stops) and bool(again - stops)


def _cancel(scene: Scene, tasks: list[str]) -> None:
    rest = scene.cluster.rest()
    try:
        for task in tasks:
            try:
                rest.persist("POST", f"/v1/tasks/{task}/cancel", b"{}")
            except Refused as refused:
                # It has ended.
                if refused.status != 409:
                    raise
    finally:
        rest.close()
