"""How long tasks of a failed agent took to run again, as the oracle reads it from a run's books."""

from __future__ import annotations

from benchmarks.oracle.books import Change, Mark, Record
from benchmarks.oracle.scene import Books

STRUCK_S = 100.0


def mark(task: str, attempt: int, phase: str, at_s: float) -> Mark:
    return Mark(task, attempt, phase, at_s, 7, "work")


def placed(task: str, attempt: int, agent: str) -> Change:
    return Change(90.0, task=task, state="RUNNING", attempt=attempt, agent=agent)


def decided(at_s: float, action: str, outcome: str = "open", agent: str = "a1") -> Change:
    return Change(at_s, agent=agent, recovery=f"1-{agent} {action} {outcome}")


def books(marks: list[Mark], events: list[Change]) -> Books:
    return Books(marks, {m.task: Record(m.task, "SUCCEEDED", 2) for m in marks}, events)


def test_a_task_is_timed_from_the_decision_before_it_ran() -> None:
    kept = books(
        [
            mark("t1", 1, "begin", 95.0),
            mark("t1", 2, "begin", 112.5),
            mark("t2", 1, "begin", 96.0),
            mark("t2", 2, "begin", 117.0),
            mark("t3", 1, "begin", 97.0),
            mark("t3", 2, "begin", 118.0),
        ],
        [
            *(placed(task, 1, "a1") for task in ("t1", "t2", "t3")),
            decided(90.0, "migrate"),
            decided(111.0, "wait"),
            decided(115.0, "migrate"),
            decided(116.5, "migrate", agent="a2"),
            decided(116.9, "migrate", "moved"),
        ],
    )
    assert kept.resumed_s(["a1"], STRUCK_S) == [12.5, 17.0, 18.0]
    notes = kept.resumed_after(["a1"], STRUCK_S, {"t3"})
    assert notes == {
        "begun_after_decision": 2,
        "begun_after_decision_median_s": 1.75,
        "begun_after_decision_max_s": 2.0,
        "stop_begun_after_decision": 1,
        "stop_begun_after_decision_median_s": 3.0,
        "stop_begun_after_decision_max_s": 3.0,
    }


def test_what_had_ended_or_ran_elsewhere_or_never_again_is_not_timed() -> None:
    kept = books(
        [
            mark("done", 1, "begin", 95.0),
            mark("done", 1, "end", 99.0),
            mark("done", 2, "begin", 113.0),
            mark("other", 1, "begin", 95.0),
            mark("other", 2, "begin", 113.0),
            mark("lost", 1, "begin", 95.0),
        ],
        [placed("done", 1, "a1"), placed("other", 1, "a2"), placed("lost", 1, "a1")],
    )
    assert kept.resumed_s(["a1"], STRUCK_S) == []
    assert kept.resumed_after(["a1"], STRUCK_S) == {}
