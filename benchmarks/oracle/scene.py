"""One run: a loaded cluster, a fault at a seeded moment, and whether the books balance after."""

from __future__ import annotations

import random
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.oracle.books import LABEL, REQUEST, Change, Mark, Record
from benchmarks.oracle.checker import GIVEN_UP, Expectation, Verdict, check
from benchmarks.oracle.cluster import Cluster, fenced, until
from benchmarks.oracle.far_network import why_no_network
from benchmarks.oracle.load import Load, Shape
from benchmarks.oracle.store_ground import Stores

# Far above what the slowest fault needs; a task that is open after it is lost.
ENDS_WITHIN_S = 120.0
# Late outcomes are on their way for a moment after the last task has ended.
SETTLE_S = 0.5
# The fault strikes when this share of the burst has been done.
_EARLIEST, _LATEST = 0.1, 0.6
_MOMENT_WITHIN_S = 120.0


@dataclass(slots=True)
class Strike:
    """What a fault did and saw. Times are CLOCK_MONOTONIC seconds.

    `struck_s`: when it began; `healed_s`: when its cause was gone (the same for a kill).
    `victims`: executions that were killed one by one: when, task, attempt. `problems`: what had
    to hold and did not. `notes`: further figures of this run.
    """

    struck_s: float
    healed_s: float = 0.0
    expectation: Expectation = field(default_factory=Expectation)
    detections_s: list[float] = field(default_factory=list)
    recoveries_s: list[float] = field(default_factory=list)
    victims: list[tuple[float, str, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    def demand(self, holds: bool, what: str) -> None:
        if not holds:
            self.problems.append(what)


@dataclass(slots=True)
class Books:
    """All that is known after a run."""

    marks: Sequence[Mark]
    records: dict[str, Record]
    events: list[Change]

    def agents_of(self, task: str) -> dict[int, str]:
        """Which agent had which attempt."""
        return {e.attempt: e.agent for e in self.events if e.task == task and e.agent}

    def first_agent_change(
        self, agent: str, states: Sequence[str], after_s: float
    ) -> Change | None:
        """The first event after a moment that shows the agent in one of these states."""
        for event in self.events:
            if event.agent_state in states and event.agent == agent and event.at_s >= after_s:
                return event
        return None

    def resumed_s(self, agents: Sequence[str], at_s: float) -> list[float]:
        """For each task that ran on one of the agents at a moment and was not done by that
        execution: seconds from then until it had begun anew."""
        return [begun_s - at_s for _, _, begun_s in self._redone(agents, at_s)]

    def resumed_after(
        self, agents: Sequence[str], at_s: float, stop: Collection[str] = ()
    ) -> dict[str, float]:
        """The same tasks as notes of a run: seconds from the last decision about their agent
        until they had begun anew.

        Those of `stop` for themselves: whatever is decided, they may not begin elsewhere before
        the agent has surely ended them.
        """
        # An event has whole milliseconds.
        decided = [
            e.at_s
            for e in self.events
            if e.agent in agents and e.recovery.endswith(" open") and e.at_s >= at_s - 0.01
        ]
        waits: dict[str, list[float]] = {"": [], "stop_": []}
        for task, _, begun_s in self._redone(agents, at_s):
            before = [moment_s for moment_s in decided if moment_s <= begun_s + 0.01]
            if before:
                waits["stop_" if task in stop else ""].append(max(0.0, begun_s - max(before)))
        notes: dict[str, float] = {}
        for kind, seconds in waits.items():
            if seconds:
                notes[f"{kind}begun_after_decision"] = len(seconds)
                notes[f"{kind}begun_after_decision_median_s"] = statistics.median(seconds)
                notes[f"{kind}begun_after_decision_max_s"] = max(seconds)
        return notes

    def _redone(self, agents: Sequence[str], at_s: float) -> list[tuple[str, int, float]]:
        """Tasks that ran on one of the agents at a moment and were not done by that execution:
        with its attempt, and when a later one began."""
        owners: dict[str, dict[int, str]] = {}
        for event in self.events:
            if event.task and event.agent:
                owners.setdefault(event.task, {})[event.attempt] = event.agent
        ended = {(m.task, m.attempt): m.at_s for m in self.marks if m.phase == "end"}
        open_then = {
            (m.task, m.attempt)
            for m in self.marks
            if m.phase == "begin"
            and m.at_s <= at_s
            and ended.get((m.task, m.attempt), at_s + 1) > at_s
            and owners.get(m.task, {}).get(m.attempt) in agents
        }
        redone = []
        for task, attempt in sorted(open_then):
            later = [
                m.at_s
                for m in self.marks
                if m.task == task and m.phase == "begin" and m.attempt > attempt
            ]
            if later:
                redone.append((task, attempt, min(later)))
        return redone


@dataclass(slots=True)
class Scene:
    """What a fault is given. `short`: the run is to take a few seconds where that is sound."""

    cluster: Cluster
    load: Load
    chance: random.Random
    short: bool

    def await_moment(self, latest: float = _LATEST) -> None:
        """Until a seeded share of the burst has been done: the rest is in flight."""
        share = self.chance.uniform(_EARLIEST, latest)
        wanted = share * self.load.shape.tasks
        until(lambda: self.load.side.ended() >= wanted, "the moment", _MOMENT_WITHIN_S)

    def stop_tasks(self) -> set[str]:
        """Acknowledged tasks that their agent ends when it is cut off."""
        return {i for entry in self.load.journal.entries() if entry.stop for i in entry.ids}

    def first_end_after_s(self, at_s: float, within_s: float = 90.0) -> float:
        """Seconds from a moment until a task that was sent after it has been done."""

        side = self.load.side

        def look() -> float:
            side.read()
            ends = [
                end_s
                for entry in self.load.journal.entries()
                if entry.sent_s > at_s
                for ident in entry.ids
                if (end_s := side.first_end_s(ident)) is not None
            ]
            return min(ends) - at_s if ends else 0.0

        return float(until(look, "a task sent after the fault", within_s))


@dataclass(frozen=True, slots=True)
class Limits:
    """What the catalogue demands besides balanced books; seconds, of the 99th percentile.

    `again_s`: from the last decision about a lost agent until its tasks have begun elsewhere,
    without those of `stop`. `suspected_s`: until a lost agent is suspected, half of the time.
    """

    detection_s: float = 0.0
    recovery_s: float = 0.0
    again_s: float = 0.0
    suspected_s: float = 0.0
    also: str = ""

    def __str__(self) -> str:
        parts = [self.also] if self.also else []
        if self.detection_s:
            parts.append(f"detection ≤ {self.detection_s:g} s")
        if self.recovery_s:
            parts.append(f"recovery ≤ {self.recovery_s:g} s")
        if self.suspected_s:
            parts.append(f"suspected within {self.suspected_s:g} s (p50)")
        if self.again_s:
            parts.append(f"tasks run again ≤ {self.again_s:g} s after the decision")
        return ", ".join(parts)


class Ground:
    """The cluster that a fault is made in, unless the fault says otherwise.

    `proxied`: links between services can be cut. `wired`: each agent is a host of its own.
    `clocked`: the wall clock can be set. `alone`: it measures what the machine can do, so nothing
    runs beside it. `agents`: at least so many. `stores`: what Redis and etcd stand on.
    """

    proxied = False
    wired = False
    clocked = False
    alone = False
    agents = 0
    stores = Stores()

    def why_not(self) -> str:
        """Why this machine cannot make the fault; empty when it can."""
        return (why_no_network() if self.wired else "") or self.stores.why_not()


class Fault(Protocol):
    """One line of the catalogue."""

    @property
    def number(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def proxied(self) -> bool: ...
    @property
    def wired(self) -> bool: ...
    @property
    def clocked(self) -> bool: ...
    @property
    def alone(self) -> bool: ...
    @property
    def agents(self) -> int: ...
    @property
    def stores(self) -> Stores: ...

    def why_not(self) -> str: ...
    def shape(self, tasks: int, short: bool) -> Shape: ...
    def strike(self, scene: Scene) -> Strike: ...
    def judge(self, scene: Scene, strike: Strike, books: Books) -> None: ...


@dataclass(slots=True)
class Run:
    """What came of one fault with one seed."""

    fault: str
    seed: int
    tasks: int = 0
    lost: int = 0
    doubled: int = 0
    stale: int = 0
    charged: int = 0
    moved: int = 0
    fenced: int = 0
    duplicates: int = 0
    unrecorded: int = 0
    refused: int = 0
    longest_gap_s: float = 0.0
    detections_s: list[float] = field(default_factory=list)
    recoveries_s: list[float] = field(default_factory=list)
    # Agents given up, and suspected, that the fault had not touched.
    false_deaths: int = 0
    false_suspicions: int = 0
    took_s: float = 0.0
    # Why this machine cannot make the fault; then nothing was run.
    skipped: str = ""
    # Which code was run, see `results.fingerprint`.
    code: str = ""
    violations: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    # Why submissions were refused, and how often.
    refusals: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not self.violations and not self.problems

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_fault(
    fault: Fault, cluster: Cluster, folder: Path, *, seed: int, tasks: int, short: bool = False
) -> Run:
    """Loads the cluster, lets the fault strike, waits until all is well, and checks."""
    began_s = time.monotonic()
    cluster.await_healthy()
    # Agents of earlier faults, whose end is still to come.
    strangers = frozenset(cluster.agent_states()) - frozenset(cluster.agent_ids)
    position, refusals = cluster.log_position(), fenced(cluster)
    name = f"f{fault.number}-{seed}-{uuid.uuid4().hex[:8]}"
    load = Load(cluster, folder, name, seed, fault.shape(tasks, short))
    scene = Scene(cluster, load, random.Random(f"{fault.number}/{seed}"), short)
    load.start()
    try:
        strike = fault.strike(scene)
    except Exception:
        load.finish()
        raise
    except BaseException:
        load.abandon()
        raise
    load.finish()
    load.await_ends(ENDS_WITHIN_S)
    cluster.await_healthy()
    time.sleep(SETTLE_S)
    books = gather(cluster, load, position, strangers)
    fault.judge(scene, strike, books)
    verdict = check(
        load.journal.entries(), books.marks, books.records, books.events, strike.expectation
    )
    return _run(fault, seed, scene, strike, books, verdict, refusals, time.monotonic() - began_s)


def gather(
    cluster: Cluster, load: Load, position: str, strangers: frozenset[str] = frozenset()
) -> Books:
    """All records, marks and events of the run but those of `strangers`."""
    rest = cluster.rest()
    records = {
        item["id"]: Record(
            id=item["id"],
            state=item["state"],
            attempt=item["attempt"],
            failures=item["failures"],
            agent_deaths=item["agent_deaths"],
            agent=item["agent"] or "",
            result=item.get("result"),
            request=item["labels"].get(REQUEST, ""),
        )
        for item in rest.tasks_labelled(f"{LABEL}={load.run}")
    }
    rest.close()
    events = [
        event
        for event in cluster.events(position, cluster.log_position())
        if (event.task in records if event.task else event.agent not in strangers)
    ]
    return Books(load.side.read(), records, events)


def _run(
    fault: Fault,
    seed: int,
    scene: Scene,
    strike: Strike,
    books: Books,
    verdict: Verdict,
    before: Any,
    took_s: float,
) -> Run:
    load = scene.load
    after = fenced(scene.cluster)
    harmed = strike.expectation.harmed
    untouched = [event.agent_state for event in books.events if event.agent not in harmed]
    refused_outcomes = sum(
        count - (before[name][1] if before[name][0] == pid else 0.0)
        for name, (pid, count) in after.items()
    )
    first_s = min((e.sent_s for e in load.journal.entries()), default=0.0)
    last_s = max(load.trickle.accepted_s, default=first_s)
    return Run(
        fault=fault.number,
        seed=seed,
        tasks=len(load.journal.ids()),
        lost=len(verdict.lost),
        doubled=len(verdict.doubled),
        stale=len(verdict.stale),
        charged=len(verdict.charged),
        moved=len(verdict.moved),
        fenced=int(refused_outcomes),
        duplicates=verdict.duplicate_executions,
        unrecorded=verdict.unrecorded_executions,
        refused=len(load.burst.refused) + len(load.trickle.refused),
        false_deaths=sum(state in GIVEN_UP for state in untouched),
        false_suspicions=untouched.count("SUSPECT"),
        longest_gap_s=load.trickle.longest_gap_s(first_s, last_s),
        detections_s=strike.detections_s,
        recoveries_s=strike.recoveries_s,
        took_s=took_s,
        violations=verdict.violations(),
        problems=strike.problems,
        notes=strike.notes,
        refusals=dict(Counter(why for _, why in [*load.burst.refused, *load.trickle.refused])),
    )
