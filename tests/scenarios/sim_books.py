"""What really happened, kept beside the records, and what must be true of every record."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.scenarios.sim_kernel import FASTEST, Kernel, SimulationError

from muster.agent.error_kinds import NON_RETRYABLE_ERROR_KINDS
from muster.domain.ids import AgentId, TaskId
from muster.domain.task import POISON_DEATHS, Lifetime, Outcome, OutcomeKind, TaskSpec, TaskStatus
from muster.domain.task_lifecycle import (
    ENDED_STATES,
    HELD_STATES,
    TRANSITIONS,
    TaskEvent,
    TaskState,
)
from muster_scheduler.core.outcomes import NO_PROGRESS_KIND

Key = tuple[TaskId, int]

# The cluster's clock at the start of a run.
CLOCK_MS = 10_000
# Confirmations that overtake each other move a leader's idea of it by about as much.
CLOCK_JUMPS_MS = 2_000

# One write may carry several decisions; more than this many attempts in one is a runaway.
_MOST_ATTEMPTS_AT_ONCE = 4


def _reachable() -> frozenset[tuple[TaskState, TaskState, int]]:
    """(from, to, attempts between) by steps of the lifecycle table."""
    found = {(s, s, 0) for s in TaskState}
    grown = True
    while grown:
        grown = False
        for first, last, attempts in tuple(found):
            for (state, event), after in TRANSITIONS.items():
                step = (first, after, attempts + (event is TaskEvent.ASSIGN))
                if state is last and step not in found and step[2] <= _MOST_ATTEMPTS_AT_ONCE:
                    found.add(step)
                    grown = True
    return frozenset(found)


REACHABLE = _reachable()


def label(task: TaskId, attempt: int) -> str:
    """A short name for people: the last characters of the id tell tasks of one run apart."""
    return f"#{task[14:22]}{task[25:]}.{attempt}"


def token(agent: AgentId, incarnation: int, task: TaskId, attempt: int) -> str:
    """Marks an outcome with the attempt that it is of."""
    return f"{agent}/{incarnation}/{label(task, attempt)}"


@dataclass(slots=True)
class Truth:
    """One attempt that was durably assigned."""

    agent: AgentId
    incarnation: int
    started: bool = False
    # When it was started last.
    started_ms: int = 0
    pushed_ms: int = 0
    # What its agent said of its end: more than once when the same attempt was given to it again.
    outcomes: list[Outcome] = field(default_factory=list)

    def said(self, *kinds: OutcomeKind) -> bool:
        return any(outcome.kind in kinds for outcome in self.outcomes)


class Books:
    """Numbers in comments and messages are those of ARCHITECTURE.md's invariants."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.specs: dict[TaskId, TaskSpec] = {}
        # When a client first asked for the task.
        self.asked_ms: dict[TaskId, int] = {}
        self.accepted: set[TaskId] = set()
        self.attempts: dict[Key, Truth] = {}
        # Tasks whose cancellation was asked for, and (accepted) at which attempt it was durable.
        self.cancel_asked: set[TaskId] = set()
        self.cancelled: dict[TaskId, int] = {}
        self.succeeded: dict[TaskId, int] = {}
        # How an attempt ended, seen from its process.
        self.seen: dict[Key, OutcomeKind] = {}

    def _fail(self, number: int, text: str) -> None:
        raise SimulationError(f"invariant {number}: {text}")

    # ------------------------------------------------------------------- records

    def created(self, spec: TaskSpec, status: TaskStatus) -> None:
        """A record that was not there before."""
        if spec.id in self.specs:
            self._fail(8, f"{label(spec.id, 0)} is created twice")
        if status.state not in (TaskState.PENDING, TaskState.ASSIGNED):
            self._fail(2, f"{label(spec.id, 0)} is created {status.state}")
        self.specs[spec.id] = spec
        if status.state is TaskState.ASSIGNED:
            self._assigned(spec.id, status)

    def _assigned(self, task: TaskId, status: TaskStatus) -> None:
        key = task, status.attempt
        if key in self.attempts:
            self._fail(5, f"{label(*key)} is assigned twice")
        self.attempts[key] = Truth(status.agent, status.incarnation)

    def changed(self, spec: TaskSpec, old: TaskStatus, new: TaskStatus) -> None:
        """A record that was another before."""
        name = label(spec.id, old.attempt)
        if old.state in ENDED_STATES:
            self._fail(2, f"{name} had ended {old.state} and becomes {new.state}")
        if (old.state, new.state, new.attempt - old.attempt) not in REACHABLE:
            self._fail(
                2, f"{name} goes from {old.state} to {label(spec.id, new.attempt)} {new.state}"
            )
        if new.attempt > self.cancelled.get(spec.id, new.attempt):
            self._fail(1, f"{name} is given out again after its cancellation was acknowledged")
        if new.created_clock_ms != old.created_clock_ms:
            self._fail(12, f"{name} was created at another time of the cluster's clock now")
        truth = self.attempts.get((spec.id, old.attempt))
        self._check_outcome(spec, old, new, truth)
        self._check_counts(spec, old, new, truth)
        if new.state in ENDED_STATES:
            self.kernel.tally[f"task {new.state.value}"] += 1
            self._check_end(spec, old, new, truth)
        if new.state in HELD_STATES and new.attempt > old.attempt:
            self._assigned(spec.id, new)
        elif new.state in HELD_STATES and truth is not None:
            if (truth.agent, truth.incarnation) != (new.agent, new.incarnation):
                self._fail(5, f"{name} of {truth} is said to be {new.agent}/{new.incarnation}'s")
            if new.state is TaskState.RUNNING and not truth.started:
                self._fail(5, f"{name} is RUNNING and was never started")

    def _check_outcome(
        self, spec: TaskSpec, old: TaskStatus, new: TaskStatus, truth: Truth | None
    ) -> None:
        outcome = new.outcome
        if outcome is None or outcome is old.outcome or not outcome.output_blob:
            return
        expected = token(old.agent, old.incarnation, spec.id, old.attempt)
        if outcome.output_blob != expected or old.state not in HELD_STATES:
            self._fail(5, f"recorded the outcome of {outcome.output_blob}, not of {expected}")
        if truth is None or not truth.said(outcome.kind):
            self._fail(5, f"{expected} is recorded as {outcome.kind}, and that is not what it said")

    def _check_counts(
        self, spec: TaskSpec, old: TaskStatus, new: TaskStatus, truth: Truth | None
    ) -> None:
        name = label(spec.id, old.attempt)
        failures = new.failures - old.failures
        deaths = new.agent_deaths - old.agent_deaths
        if failures not in (0, 1) or deaths not in (0, 1) or failures + deaths > 1:
            self._fail(9, f"{name} is charged {failures} failures and {deaths} deaths at once")
        if failures:
            if truth is None or not truth.outcomes:
                self._fail(9, f"{name} is charged a failure, and its agent never said so")
            elif not (truth.said(OutcomeKind.FAILED, OutcomeKind.TIMED_OUT) or _is_timed(spec)):
                # Whatever an attempt says after its time was up counts as its time-out.
                self._fail(9, f"{name} is charged a failure for {truth.outcomes[-1]}")
            elif new.outcome is not None and new.outcome.error_kind == NO_PROGRESS_KIND:
                self._check_stuck(spec, name, truth)
            elif truth.said(OutcomeKind.TIMED_OUT) and not self._is_late(spec, new):
                ran_ms = self.kernel.now_ms - truth.started_ms
                if not (truth.started and 0 < spec.timeout_ms <= ran_ms * FASTEST):
                    self._fail(12, f"{name} is charged a time-out after {ran_ms} ms")
            elif _goes_on(spec, new) and _was_last(spec, new):
                self._fail(9, f"{name} goes on after {new.failures} failures: {new.outcome}")
        if deaths and (truth is None or not truth.started):
            self._fail(9, f"{name} is blamed for a death and had not started")

    def _check_stuck(self, spec: TaskSpec, name: str, truth: Truth) -> None:
        """It had not shown progress for long when it was told to end; see `Witness.check_stuck`."""
        ran_ms = self.kernel.now_ms - truth.started_ms
        if not 0 < spec.progress_timeout_ms <= ran_ms * FASTEST + CLOCK_JUMPS_MS:
            self._fail(12, f"{name} counts as stuck after it ran for {ran_ms} ms")

    def _check_end(
        self,
        spec: TaskSpec,
        old: TaskStatus,
        new: TaskStatus,
        truth: Truth | None,
    ) -> None:
        name, state = label(spec.id, old.attempt), new.state
        is_last = _was_last(spec, new)
        if state is TaskState.SUCCEEDED:
            said = truth is not None and truth.said(OutcomeKind.SUCCEEDED)
            if not said or spec.lifetime is not Lifetime.FINITE:
                self._fail(5, f"{name} is recorded as a success of {spec.lifetime}: {truth}")
            self.succeeded[spec.id] = old.attempt
        elif state is TaskState.FAILED:
            if not is_last:
                self._fail(9, f"{name} failed for good after {new.failures} failures")
        elif state is TaskState.DEAD:
            if new.agent_deaths < POISON_DEATHS:
                self._fail(9, f"{name} is DEAD after {new.agent_deaths} deaths")
        elif state is TaskState.CANCELLED:
            if spec.id not in self.cancel_asked:
                self._fail(2, f"{name} is CANCELLED and nobody asked for it")
        elif not self._is_late(spec, new) and not (is_last and spec.timeout_ms > 0):
            self._fail(12, f"{name} is TIMED_OUT before its time")
        if spec.id in self.cancelled and state not in (TaskState.CANCELLED, TaskState.SUCCEEDED):
            self._fail(1, f"{name} ends {state} after its cancellation was acknowledged")

    def _is_late(self, spec: TaskSpec, new: TaskStatus) -> bool:
        """Whether one of the task's deadlines may have passed."""
        # The clock may stand still between a task's creation and its leader's next word.
        by_clock_ms = CLOCK_MS + self.kernel.now_ms - new.created_clock_ms
        waited_ms = max(by_clock_ms, self.kernel.now_ms - self.asked_ms[spec.id])
        return any(
            0 < d <= waited_ms + CLOCK_JUMPS_MS
            for d in (spec.total_deadline_ms, spec.start_deadline_ms)
        )

    # --------------------------------------------------------------------- agents

    def started(self, agent: AgentId, incarnation: int, key: Key) -> None:
        """A process took the attempt up."""
        truth = self.attempts.get(key)
        if truth is None:
            self._fail(7, f"{label(*key)} runs on {agent}/{incarnation} and is not durable")
        elif (truth.agent, truth.incarnation) != (agent, incarnation):
            self._fail(5, f"{label(*key)} runs on {agent}/{incarnation} and is {truth.agent}'s")
        else:
            truth.started = True
            truth.started_ms = self.kernel.now_ms

    def ended(self, key: Key, outcome: Outcome) -> None:
        """How an agent says that its attempt ended."""
        kinds, seen = OutcomeKind, self.seen.get(key, OutcomeKind.RETURNED)
        if outcome.kind is not seen and outcome.kind in (kinds.SUCCEEDED, kinds.FAILED):
            self._fail(9, f"{label(*key)} is said to be {outcome.kind}, and was {seen}")
        if seen is kinds.SUCCEEDED and outcome.kind not in (seen, kinds.TIMED_OUT):
            self._fail(6, f"{label(*key)} was done and is said to be {outcome.kind}")
        truth = self.attempts.get(key)
        if truth is not None and (not truth.outcomes or truth.outcomes[-1] != outcome):
            truth.outcomes.append(outcome)

    def pushed(self, agent: AgentId, incarnation: int, key: Key) -> None:
        """A leader sends the attempt to this incarnation of the agent."""
        truth = self.attempts.get(key)
        if truth is None or (truth.agent, truth.incarnation) != (agent, incarnation):
            self._fail(7, f"{label(*key)} is given to {agent}/{incarnation}; durable is {truth}")
        else:
            self.kernel.tally["attempt pushed again"] += truth.pushed_ms > 0
            truth.pushed_ms = self.kernel.now_ms

    def acknowledged(self, key: Key, status: TaskStatus) -> None:
        """A leader sends word that the attempt's outcome is recorded."""
        name = label(*key)
        if status.attempt < key[1] or (status.attempt == key[1] and status.state in HELD_STATES):
            self._fail(6, f"{name} is acknowledged and not recorded")
        truth, spec = self.attempts.get(key), self.specs[key[0]]
        if truth is None or spec.lifetime is not Lifetime.FINITE or not truth.outcomes:
            return
        only_success = all(o.kind is OutcomeKind.SUCCEEDED for o in truth.outcomes)
        if only_success and self.succeeded.get(key[0]) != key[1]:
            self._fail(6, f"the success of {name} is acknowledged and not what is recorded")


def _goes_on(spec: TaskSpec, status: TaskStatus) -> bool:
    return spec.lifetime is Lifetime.FINITE and status.state not in ENDED_STATES


def _was_last(spec: TaskSpec, status: TaskStatus) -> bool:
    """Whether a failure that is recorded is one after which a task with an end has failed."""
    kind = status.outcome.error_kind if status.outcome is not None else ""
    return status.failures >= spec.max_attempts or kind in NON_RETRYABLE_ERROR_KINDS


def _is_timed(spec: TaskSpec) -> bool:
    return bool(
        spec.timeout_ms
        or spec.progress_timeout_ms
        or spec.total_deadline_ms
        or spec.start_deadline_ms
    )
