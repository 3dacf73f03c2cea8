"""Do the books balance? Pure: journal, marks, records and events in, a verdict out.

* **lost**: an acknowledged task that did not end, or not as it must.
* **doubled**: a submission answered with two sets of ids, a task that nobody was told of, a
  task with more than one end, or two executions of a `stop` task at a time.
* **stale accepted**: a recorded result that is not of the recorded attempt's own execution, an
  attempt or a term that goes back in the order of the log.
* **charged wrongly**: a failure or an agent's death counted against a task without one.
* **moved without reason**: an attempt taken from an agent that no fault had touched, or such an
  agent given up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.oracle.books import ENDED_STATES, SUCCEEDED, Acknowledged, Change, Mark, Record

GIVEN_UP = frozenset({"DOWN", "RESTARTING", "QUARANTINED", "LEFT"})


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the fault excuses.

    `harmed`: agents whose tasks may move. `deaths`: a task may be charged with an agent's death
    for each of its attempts on a harmed agent. `failures`: attempts of skills that the fault
    made fail, in all. `excused`: tasks that may be gone for good.
    """

    harmed: frozenset[str] = frozenset()
    deaths: bool = False
    failures: int = 0
    excused: frozenset[str] = frozenset()


@dataclass(slots=True)
class Verdict:
    """Sentences, one for each violation; and what is allowed and only counted."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    charged: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    duplicate_executions: int = 0
    unrecorded_executions: int = 0

    @property
    def clean(self) -> bool:
        return not self.violations()

    def violations(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.stale, *self.charged, *self.moved]


def check(
    journal: Sequence[Acknowledged],
    marks: Sequence[Mark],
    records: Mapping[str, Record],
    events: Sequence[Change],
    expectation: Expectation,
) -> Verdict:
    """`records` are all tasks of the run that the cluster has, `events` its log in order."""
    verdict = Verdict()
    by_task: dict[str, list[Change]] = defaultdict(list)
    for event in events:
        if event.task:
            by_task[event.task].append(event)
    _check_lost(journal, records, expectation.excused, verdict)
    _check_doubled(journal, records, by_task, verdict)
    _check_overlaps(journal, marks, verdict)
    _check_stale(marks, records, by_task, events, verdict)
    _check_charges(records, by_task, expectation, verdict)
    _check_moves(records, by_task, events, expectation, verdict)
    begun = Counter(mark.task for mark in marks if mark.phase == "begin")
    verdict.duplicate_executions = sum(count - 1 for count in begun.values())
    done = {(mark.task, mark.attempt) for mark in marks if mark.phase == "end"}
    verdict.unrecorded_executions = sum(
        1
        for task, attempt in done
        if task in records
        and (records[task].state != SUCCEEDED or records[task].attempt != attempt)
    )
    return verdict


def _check_lost(
    journal: Sequence[Acknowledged],
    records: Mapping[str, Record],
    excused: frozenset[str],
    verdict: Verdict,
) -> None:
    for entry in journal:
        for ident in entry.ids:
            record = records.get(ident)
            if record is None and ident in excused:
                continue
            if record is None:
                verdict.lost.append(f"{ident} was acknowledged and is not there")
            elif record.state not in ENDED_STATES:
                verdict.lost.append(f"{ident} is still {record.state}")
            elif record.state not in entry.expected:
                verdict.lost.append(f"{ident} ended as {record.state}")


def _check_doubled(
    journal: Sequence[Acknowledged],
    records: Mapping[str, Record],
    by_task: Mapping[str, Sequence[Change]],
    verdict: Verdict,
) -> None:
    by_key: dict[str, tuple[str, ...]] = {}
    known: Counter[str] = Counter()
    for entry in journal:
        if by_key.setdefault(entry.key, entry.ids) != entry.ids:
            verdict.doubled.append(f"key {entry.key} was answered with different ids")
        known.update(entry.ids)
    verdict.doubled += [f"{i} was given to {n} submissions" for i, n in known.items() if n > 1]
    verdict.doubled += [f"{i} exists, and nobody was told" for i in records if i not in known]
    for task, changes in by_task.items():
        ends = [change for change in changes if change.state in ENDED_STATES]
        if len(ends) > 1:
            states = ", ".join(f"{end.state} ({end.attempt})" for end in ends)
            verdict.doubled.append(f"{task} ended {len(ends)} times: {states}")
        elif ends and changes[-1] is not ends[0]:
            verdict.doubled.append(f"{task} went on after its end: {changes[-1].state}")


def _check_overlaps(
    journal: Sequence[Acknowledged], marks: Sequence[Mark], verdict: Verdict
) -> None:
    alone = {ident for entry in journal if entry.stop for ident in entry.ids}
    begun: dict[tuple[str, int], float] = {}
    # Its end, or the last sign of life of one that was killed.
    seen: dict[tuple[str, int], float] = {}
    for mark in marks:
        if mark.task in alone:
            (begun if mark.phase == "begin" else seen)[mark.task, mark.attempt] = mark.at_s
    for (task, attempt), end_s in seen.items():
        for (other, later), begin_s in begun.items():
            if other == task and later > attempt and begin_s < end_s:
                verdict.doubled.append(f"{task}: attempts {attempt} and {later} ran together")


def _check_stale(
    marks: Sequence[Mark],
    records: Mapping[str, Record],
    by_task: Mapping[str, Sequence[Change]],
    events: Sequence[Change],
    verdict: Verdict,
) -> None:
    tokens = {(m.task, m.attempt, m.token) for m in marks if m.phase == "end"}
    for known in records.values():
        verdict.stale += _stale_result(known, tokens)
    for task, changes in by_task.items():
        highest = 0
        for change in changes:
            if change.attempt < highest:
                verdict.stale.append(f"{task}: attempt {change.attempt} after {highest}")
            highest = max(highest, change.attempt)
        record = records.get(task)
        ends = [change for change in changes if change.state in ENDED_STATES]
        if record is not None and ends and record.attempt != ends[-1].attempt:
            verdict.stale.append(f"{task}: its end and its record name different attempts")
    term = 0
    for change in events:
        if 0 < change.term < term:
            verdict.stale.append(f"term {change.term} wrote {change.task} after term {term}")
        term = max(term, change.term)


def _stale_result(record: Record, tokens: set[tuple[str, int, str]]) -> list[str]:
    """Results of the oracle's own skills carry what their execution has marked."""
    result = record.result
    if record.state != SUCCEEDED or not isinstance(result, dict) or "token" not in result:
        return []
    if result["task"] != record.id:
        return [f"{record.id} has the result of {result['task']}"]
    if result["attempt"] != record.attempt:
        return [f"{record.id}, attempt {record.attempt}: a result of {result['attempt']}"]
    if (record.id, record.attempt, result["token"]) not in tokens:
        return [f"{record.id}: a result that no execution has marked"]
    return []


def _check_charges(
    records: Mapping[str, Record],
    by_task: Mapping[str, Sequence[Change]],
    expectation: Expectation,
    verdict: Verdict,
) -> None:
    failed = {r.id: r.failures for r in records.values() if r.failures}
    if sum(failed.values()) > expectation.failures:
        verdict.charged.append(
            f"{sum(failed.values())} failures are charged, {expectation.failures} happened: "
            + ", ".join(sorted(failed)[:5])
        )
    for record in records.values():
        if not record.agent_deaths:
            continue
        agents = _agents_of(by_task.get(record.id, ()))
        # An attempt whose assignment was never an event of its own may have been anywhere.
        on_harmed = sum(
            agents.get(attempt, "") in expectation.harmed | {""}
            for attempt in range(1, record.attempt + 1)
        )
        if record.agent_deaths > (on_harmed if expectation.deaths else 0):
            verdict.charged.append(f"{record.id}: {record.agent_deaths} agents' deaths")


def _check_moves(
    records: Mapping[str, Record],
    by_task: Mapping[str, Sequence[Change]],
    events: Sequence[Change],
    expectation: Expectation,
    verdict: Verdict,
) -> None:
    for record in records.values():
        agents = _agents_of(by_task.get(record.id, ()))
        excused = record.failures
        for attempt in range(1, record.attempt):
            agent = agents.get(attempt, "")
            if agent in expectation.harmed or (not agent and expectation.harmed):
                continue
            if excused:
                excused -= 1
                continue
            why = _why_left(by_task.get(record.id, ()), attempt)
            verdict.moved.append(f"{record.id}: attempt {attempt} left {agent or '?'}: {why}")
    verdict.moved += [
        f"agent {e.agent} became {e.agent_state}: {e.why}"
        for e in events
        if e.agent_state in GIVEN_UP and e.agent not in expectation.harmed
    ]


def _agents_of(changes: Iterable[Change]) -> dict[int, str]:
    """Which agent had which attempt."""
    return {change.attempt: change.agent for change in changes if change.agent}


def _why_left(changes: Iterable[Change], attempt: int) -> str:
    whys = [c.why for c in changes if c.attempt == attempt and c.state == "PENDING"]
    return whys[-1] if whys else "no event says why"
