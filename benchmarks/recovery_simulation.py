"""A cluster with failures in continuous time, for comparing recovery policies.

It shares no table with the planner: agents differ in size, speed and luck with restarts, tasks on
an agent share its cores, causes of failures are hidden from the leader, and all durations are
drawn from continuous distributions. What the leader is told is what a leader knows: that a
supervisor speaks or is silent, how long an agent was silent, since when each attempt has run, and
the mean run time of tasks.

All chance is drawn beforehand (`Tape`), so that policies meet the same arrivals and failures.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from muster_scheduler.recovery import (
    Action,
    Beliefs,
    Cluster,
    Failure,
    FailureKind,
    HeldTask,
    Prior,
    RecoverySettings,
    SpareLedger,
    decide,
    pause_s,
    restart_emptied,
)

MEAN_WORK_S = 20.0
AGENTS = 12
SUSPECT_S = 3.5
FENCE_S = 13.0
DEADLINE_S = 30.0
TELL_S = 5.0
# Cause: share of failures. A crash is heard of from its supervisor; a hang leaves the supervisor
# connected; the others silence both.
CAUSES = {"crash": 0.40, "hang": 0.15, "reboot": 0.12, "cut": 0.25, "dead": 0.08}


@dataclass(frozen=True, slots=True)
class Breakdown:
    """One failure as drawn: at `at_s`; `lasts_s` until the agent is back by itself, inf = never.

    Whatever else is done, its machine is replaced `replaced_s` after the failure.
    """

    at_s: float
    cause: str
    lasts_s: float
    replaced_s: float
    found_s: float
    works_on: bool
    stop_killed_s: float
    restarts: tuple[tuple[bool, float], ...]
    jitters: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tape:
    """All chance of one run: agents (cores, slots, speed), tasks (arrival, work, stop, move)."""

    agents: tuple[tuple[float, int, float], ...]
    tasks: tuple[tuple[float, float, bool, float], ...]
    breakdowns: tuple[tuple[Breakdown, ...], ...]


def draw(
    seed: int, restart_probability: float, load: float, length_s: float, mtbf_s: float = 600.0
) -> Tape:
    """A tape of `length_s` seconds; the agents' restart probabilities lie around the one given."""
    rng = np.random.default_rng([seed, 77])
    agents = []
    for _ in range(AGENTS):
        cores = float(rng.integers(2, 7))
        slots = max(2, round(cores * rng.uniform(1.2, 2.0)))
        agents.append((cores, slots, float(rng.uniform(0.7, 1.4))))
    rate = load * sum(cores * speed for cores, _, speed in agents) / MEAN_WORK_S
    count = int(rng.poisson(rate * length_s))
    arrivals = np.sort(rng.uniform(0.0, length_s, count))
    works = rng.lognormal(math.log(MEAN_WORK_S) - 0.5, 1.0, count)
    stops, moves = rng.random(count) < 0.3, rng.uniform(0.5, 4.0, count)
    tasks = tuple(
        (float(a), float(w), bool(s), float(m))
        for a, w, s, m in zip(arrivals, works, stops, moves, strict=True)
    )
    breakdowns = tuple(
        _breakdowns(np.random.default_rng([seed, 78, index]), restart_probability, length_s, mtbf_s)
        for index in range(AGENTS)
    )
    return Tape(tuple(agents), tasks, breakdowns)


def _breakdowns(
    rng: np.random.Generator, restart_probability: float, length_s: float, mtbf_s: float
) -> tuple[Breakdown, ...]:
    own = float(rng.beta(8 * restart_probability, 8 * (1 - restart_probability)))
    # How long a start takes is a matter of the skills that the agent imports.
    own, slow = max(own, 0.05), float(rng.lognormal(0.0, 0.7))
    out, at_s = [], float(rng.exponential(mtbf_s))
    while at_s < length_s:
        cause = str(rng.choice(list(CAUSES), p=list(CAUSES.values())))
        lasts_s = {
            "crash": math.inf,
            "hang": float(rng.lognormal(math.log(15), 0.8)) if rng.random() < 0.5 else math.inf,
            "reboot": float(rng.lognormal(math.log(45), 0.4)),
            "cut": float(rng.lognormal(math.log(20), 1.0)),
            "dead": math.inf,
        }[cause]
        restarts = []
        for _ in range(40):
            took_s = slow * float(rng.lognormal(math.log(4), 0.5))
            worked, hangs = bool(rng.random() < own), bool(rng.random() < 0.5)
            ends_s = DEADLINE_S if hangs and not worked else min(took_s, DEADLINE_S)
            restarts.append((worked and took_s < DEADLINE_S, ends_s))
        out.append(
            Breakdown(
                at_s=at_s,
                cause=cause,
                lasts_s=lasts_s,
                replaced_s=float(rng.uniform(200, 600)),
                found_s=0.5 if cause == "crash" else float(rng.uniform(10, 12)),
                works_on=cause == "cut" or (cause == "hang" and bool(rng.random() < 0.5)),
                stop_killed_s=float(rng.uniform(9, 12)),
                restarts=tuple(restarts),
                jitters=tuple(float(j) for j in rng.random(40)),
            )
        )
        at_s += float(rng.exponential(mtbf_s))
    return tuple(out)


@dataclass(slots=True, eq=False)
class Task:
    """One task; `agent` None = it waits. `token` grows whenever it changes hands."""

    index: int
    arrived_s: float
    work_s: float
    stop: bool
    move_s: float
    agent: Agent | None = None
    token: int = 0
    begun_s: float = 0.0
    moved: bool = False
    done: bool = False


@dataclass(slots=True, eq=False)
class Agent:
    """A machine. `done_work` is the work that each of its running tasks has had since time 0."""

    index: int
    cores: float
    slots: int
    speed: float
    # What the machine runs: (done_work at which it is done, token, task).
    heap: list[tuple[float, int, Task]] = field(default_factory=list)
    running: int = 0
    done_work: float = 0.0
    since_s: float = 0.0
    stamp: int = 0
    works: bool = True
    # What the leader believes: its tasks, and whether it may get more.
    held: set[Task] = field(default_factory=set)
    open: bool = True
    outage: Outage | None = None
    finished: list[tuple[Task, int]] = field(default_factory=list)

    def rate(self) -> float:
        """Work per second of each running task."""
        if not self.works or not self.running:
            return 0.0
        return self.speed * min(1.0, self.cores / self.running)

    def advance(self, now_s: float) -> None:
        """Does the work since the last call."""
        self.done_work += (now_s - self.since_s) * self.rate()
        self.since_s = now_s


@dataclass(slots=True, eq=False)
class Outage:
    """One failure of one agent as it goes. `down`: the leader has found the agent DOWN."""

    agent: Agent
    drawn: Breakdown
    kind: FailureKind
    down: bool = False
    over: bool = False
    tried: int = 0
    ordered_s: float | None = None
    empty: bool = False
    # Until when (seconds since it was last heard) the planner was told that it stayed away.
    told_s: float = 0.0

    @property
    def found_at_s(self) -> float:
        """When it is found DOWN."""
        return self.drawn.at_s + self.drawn.found_s


class Simulation:
    """One run of one tape under one policy; None = without failures."""

    def __init__(
        self, tape: Tape, policy: str | None, settings: RecoverySettings, prior: Prior | None = None
    ) -> None:
        self.tape, self.policy, self.settings = tape, policy, settings
        self.beliefs = Beliefs(prior)
        self.ledger = SpareLedger()
        self.now_s = 0.0
        self.agents = [Agent(i, c, s, v) for i, (c, s, v) in enumerate(tape.agents)]
        self.tasks = [Task(i, a, w, s, m) for i, (a, w, s, m) in enumerate(tape.tasks)]
        self.queue: list[tuple[float, int, Task]] = []
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.pushed = 0
        self.response_s = [0.0] * len(self.tasks)
        self.open_tasks = 0
        self.outages = 0
        self.hit = 0
        self.chosen: dict[str, int] = {}

    # ------------------------------------------------------------------ running

    def run(self) -> float:
        """To the end of the last task; returns the mean response time in seconds."""
        for task in self.tasks:
            self._at(task.arrived_s, lambda task=task: self._arrive(task))  # type: ignore[misc]
        if self.policy is not None:
            for agent, drawn in zip(self.agents, self.tape.breakdowns, strict=True):
                for breakdown in drawn:
                    self._at(
                        breakdown.at_s,
                        lambda a=agent, b=breakdown: self._fail(a, b),  # type: ignore[misc]
                    )
        left = len(self.tasks)
        self.unfinished = left
        while self.unfinished and self.events:
            self.now_s, _, act = heapq.heappop(self.events)
            act()
        assert not self.unfinished, f"{self.unfinished} tasks never ended"
        return sum(self.response_s) / max(1, len(self.tasks))

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        self.pushed += 1
        heapq.heappush(self.events, (at_s, self.pushed, act))

    def _arrive(self, task: Task) -> None:
        self.open_tasks += 1
        self._enqueue(task)
        self._place()

    def _enqueue(self, task: Task) -> None:
        heapq.heappush(self.queue, (task.arrived_s, task.index, task))

    def _place(self) -> None:
        """The oldest first, each on the agent with the most free share."""
        while self.queue:
            best, best_share = None, 0.0
            for agent in self.agents:
                share = 1.0 - len(agent.held) / agent.slots
                if agent.open and share > best_share:
                    best, best_share = agent, share
            if best is None:
                return
            _, _, task = heapq.heappop(self.queue)
            task.agent = best
            best.held.add(task)
            self._begin(best, task)

    def _begin(self, agent: Agent, task: Task) -> None:
        """The attempt begins; on a machine that does not run it begins nothing."""
        task.token += 1
        task.begun_s = self.now_s
        if agent.outage is not None and not agent.works:
            return
        agent.advance(self.now_s)
        work = task.work_s + (task.move_s if task.moved else 0.0)
        heapq.heappush(agent.heap, (agent.done_work + work, task.token, task))
        agent.running += 1
        self._next_end(agent)

    def _next_end(self, agent: Agent) -> None:
        agent.stamp += 1
        rate = agent.rate()
        if rate and agent.heap:
            stamp, due = agent.stamp, (agent.heap[0][0] - agent.done_work) / rate
            self._at(self.now_s + max(0.0, due), lambda: self._end(agent, stamp))

    def _end(self, agent: Agent, stamp: int) -> None:
        if stamp != agent.stamp:
            return
        agent.advance(self.now_s)
        agent.done_work = max(agent.done_work, agent.heap[0][0])
        _, token, task = heapq.heappop(agent.heap)
        agent.running -= 1
        if agent.outage is None:
            self._deliver(agent, task, token)
        else:
            agent.finished.append((task, token))
        self._next_end(agent)
        self._place()

    def _deliver(self, agent: Agent, task: Task, token: int) -> None:
        """The leader gets the result; one of an attempt that was given away is refused."""
        if task.done or task.agent is not agent or task.token != token:
            return
        task.done = True
        self.response_s[task.index] = self.now_s - task.arrived_s
        self.open_tasks -= 1
        self.unfinished -= 1
        agent.held.discard(task)

    def _drop(self, agent: Agent, keep: Callable[[Task, int], bool]) -> None:
        """Ends what runs on the machine but what `keep` names."""
        agent.advance(self.now_s)
        agent.heap = [entry for entry in agent.heap if keep(entry[2], entry[1])]
        heapq.heapify(agent.heap)
        agent.running = len(agent.heap)
        self._next_end(agent)

    # ------------------------------------------------------------------ failing

    def _fail(self, agent: Agent, drawn: Breakdown) -> None:
        if agent.outage is not None:
            return
        kind = {"crash": FailureKind.DIED, "hang": FailureKind.HUNG}.get(
            drawn.cause, FailureKind.UNREACHABLE
        )
        outage = agent.outage = Outage(agent, drawn, kind)
        self.outages += 1
        self.hit += len(agent.held)
        agent.advance(self.now_s)
        agent.works = drawn.works_on
        if drawn.cause in ("crash", "reboot", "dead"):
            self._drop(agent, lambda _task, _token: False)
            outage.empty = True
        self._next_end(agent)
        self._at(self.now_s + min(SUSPECT_S, drawn.found_s), lambda: self._suspect(outage))
        self._at(outage.found_at_s, lambda: self._found(outage))
        if not outage.empty:
            self._at(self.now_s + drawn.stop_killed_s, lambda: self._kill_stop(outage))
        if math.isfinite(drawn.lasts_s):
            self._at(self.now_s + drawn.lasts_s, lambda: self._mend(outage))
        self._at(self.now_s + drawn.replaced_s, lambda: self._replace(outage))

    def _suspect(self, outage: Outage) -> None:
        if not outage.over:
            outage.agent.open = False

    def _kill_stop(self, outage: Outage) -> None:
        if not outage.over and not outage.empty:
            self._drop(outage.agent, lambda task, _token: not task.stop)

    def _mend(self, outage: Outage) -> None:
        """The agent is back by itself."""
        if outage.over or outage.tried:
            return
        agent, drawn = outage.agent, outage.drawn
        if outage.down:
            self.beliefs.came_back(
                str(agent.index),
                outage.kind,
                outage.told_s,
                max(outage.told_s, self.now_s - drawn.at_s),
                not outage.empty,
                self.now_s,
            )
        self._back(outage)

    def _replace(self, outage: Outage) -> None:
        """Another machine takes the agent's place."""
        if outage.over:
            return
        outage.empty = True
        self._drop(outage.agent, lambda _task, _token: False)
        outage.agent.finished = []
        if outage.tried:
            self._back(outage)
        else:
            self._mend(outage)

    def _back(self, outage: Outage) -> None:
        """The agent serves again; held tasks that it does not have begin anew on it."""
        agent = outage.agent
        outage.over = True
        agent.advance(self.now_s)
        agent.outage, agent.works, agent.open = None, True, True
        for task, token in agent.finished:
            self._deliver(agent, task, token)
        agent.finished = []
        self._drop(
            agent, lambda task, token: not task.done and task.agent is agent and task.token == token
        )
        there = {task for _, _, task in agent.heap}
        for task in sorted(agent.held - there, key=lambda task: task.index):
            self._begin(agent, task)
        self.ledger.settle(str(agent.index))
        self._place()

    # ------------------------------------------------------------------ the leader

    def _found(self, outage: Outage) -> None:
        if outage.over:
            return
        outage.down = True
        outage.told_s = outage.drawn.found_s
        self._at(self.now_s + TELL_S, lambda: self._tell(outage))
        self._tick(outage)

    def _tell(self, outage: Outage) -> None:
        """It is still away, and so far by itself: bad news must not wait for its return."""
        if outage.over or outage.tried:
            return
        away_s = max(outage.told_s, self.now_s - outage.drawn.at_s)
        self.beliefs.stayed_away(
            str(outage.agent.index), outage.kind, outage.told_s, away_s, self.now_s
        )
        outage.told_s = away_s
        self._at(self.now_s + TELL_S, lambda: self._tell(outage))

    def _tick(self, outage: Outage) -> None:
        """Once a second while tasks are held."""
        if outage.over:
            return
        self._decide(outage)
        if outage.agent.held or self._may_mend(outage):
            self._at(self.now_s + 1.0, lambda: self._tick(outage))

    def _decide(self, outage: Outage) -> None:
        agent = outage.agent
        if not agent.held:
            if not self._may_mend(outage) or restart_emptied(
                self._failure(outage), self.beliefs, self.settings, self.now_s
            ):
                self._restart(outage)
            return
        assert self.policy is not None
        failure = self._failure(outage)
        decision = decide(
            failure,
            self._cluster(),
            self.beliefs,
            self.ledger,
            self.settings,
            self.now_s,
            self.policy,
        )
        what = f"{outage.kind} {decision.action}"
        self.chosen[what] = self.chosen.get(what, 0) + 1
        by_id = {str(task.index): task for task in agent.held}
        for ident in decision.give_away:
            self._give_away(outage, by_id[ident])
        self.ledger.settle(str(agent.index))
        if decision.action is Action.RESTART:
            self._restart(outage)
        elif not agent.held:
            self._decide(outage)
        self._place()

    def _may_mend(self, outage: Outage) -> bool:
        """Whether it is asked what is best for an agent without tasks; the other policies restart
        it at once."""
        hung = outage.kind is FailureKind.HUNG and not outage.tried
        return self.policy == "planned" and hung

    def _give_away(self, outage: Outage, task: Task) -> None:
        outage.agent.held.discard(task)
        task.agent, task.moved = None, True
        task.token += 1
        fence_s = 0.0
        if task.stop and outage.kind is not FailureKind.DIED and not outage.tried:
            fence_s = outage.drawn.at_s + FENCE_S - self.now_s
        if fence_s <= 0:
            self._enqueue(task)
        else:
            self._at(self.now_s + fence_s, lambda: self._unfence(task))

    def _unfence(self, task: Task) -> None:
        self._enqueue(task)
        self._place()

    def _restart(self, outage: Outage) -> None:
        """Orders a restart unless one is under way or nobody can be told."""
        if outage.ordered_s is not None or outage.kind is FailureKind.UNREACHABLE:
            return
        agent, drawn = outage.agent, outage.drawn
        number = min(outage.tried, len(drawn.restarts) - 1)
        pause = pause_s(outage.tried, drawn.jitters[number], self.settings)
        if not outage.tried:
            self._tell(outage)
        outage.tried += 1
        outage.ordered_s = self.now_s
        outage.empty = True
        self._drop(agent, lambda _task, _token: False)
        agent.finished = []
        worked, took_s = drawn.restarts[number]
        self._at(self.now_s + pause + took_s, lambda: self._restart_ended(outage, worked, took_s))

    def _restart_ended(self, outage: Outage, worked: bool, took_s: float) -> None:
        if outage.over:
            return
        outage.ordered_s = None
        self.beliefs.restart_ended(str(outage.agent.index), outage.kind, worked, took_s, self.now_s)
        if worked:
            self._back(outage)
        else:
            self._decide(outage)

    def _failure(self, outage: Outage) -> Failure:
        """What the leader knows of it."""
        heard_s = outage.drawn.at_s
        ordered_s = outage.ordered_s
        return Failure(
            agent=str(outage.agent.index),
            kind=outage.kind,
            silent_s=outage.drawn.found_s,
            tasks=tuple(
                HeldTask(str(t.index), max(0.0, heard_s - t.begun_s), MEAN_WORK_S, t.stop)
                for t in sorted(outage.agent.held, key=lambda t: t.index)
            ),
            slots=outage.agent.slots,
            epoch=int(self.now_s - outage.found_at_s + 1e-6),
            tried=outage.tried,
            restarting_s=None if ordered_s is None else int(self.now_s - ordered_s),
            reachable=outage.kind is not FailureKind.UNREACHABLE,
            restarts_left=60,
        )

    def _cluster(self) -> Cluster:
        there = [agent for agent in self.agents if agent.open]
        return Cluster(
            used=tuple(len(agent.held) for agent in there),
            slots=tuple(agent.slots for agent in there),
            open_response_s=self.open_tasks * MEAN_WORK_S,
            waiting=len(self.queue),
        )
