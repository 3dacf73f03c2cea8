"""How long tasks of a failed agent took to run again, as the oracle reads it from a run's books."""

from __future__ import annotations

import pytest

from benchmarks.oracle.books import Change, Mark, Record
from benchmarks.oracle.scene import Books

STRUCK_S = 100.0


def mark(task: str, attempt: int, phase: str, at_s: float) -> Mark:
    return Mark(task, attempt, phase, at_s, 7, "work")


def placed(task: str, attempt: int, agent: str) -> Change:
    return Change(90.0, task=task, state="RUNNING", attempt=attempt, agent=agent)


def freed(task: str, attempt: int, at_s: float) -> Change:
    return Change(at_s, task=task, state="PENDING", attempt=attempt)


def decided(at_s: float, action: str, outcome: str = "open", agent: str = "a1") -> Change:
    return Change(at_s, agent=agent, recovery=f"1-{agent} {action} {outcome}")


def books(marks: list[Mark], events: list[Change]) -> Books:
    return Books(marks, {m.task: Record(m.task, "SUCCEEDED", 2) for m in marks}, events)


def test_a_task_is_timed_from_the_decision_before_it_ran_and_from_when_it_was_free() -> None:
    kept = books(
        [
            mark("t1", 1, "begin", 95.0),
            mark("t1", 2, "begin", 112.5),
            mark("t2", 1, "begin", 96.0),
            mark("t2", 2, "begin", 117.0),
        ],
        [
            placed("t1", 1, "a1"),
            placed("t2", 1, "a1"),
            decided(90.0, "migrate"),
            decided(111.0, "wait"),
            freed("t1", 1, 112.0),
            decided(115.0, "migrate"),
            decided(116.5, "migrate", agent="a2"),
            decided(116.9, "migrate", "moved"),
            freed("t2", 1, 115.5),
            freed("t2", 2, 118.0),
        ],
    )
    assert kept.resumed_s(["a1"], STRUCK_S) == [12.5, 17.0]
    notes = kept.resumed_after(["a1"], STRUCK_S)
    assert notes == pytest.approx(
        {
            "begun_anew": 2,
            "begun_after_decision_max_s": 2.0,
            "begun_after_decision_median_s": 1.75,
            "begun_after_release_max_s": 1.5,
            "begun_after_release_median_s": 1.0,
        }
    )


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
    assert kept.resumed_after(["a1"], STRUCK_S) == {"begun_anew": 0}
