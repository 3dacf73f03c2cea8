"""The oracle's checker: balanced books pass, and each planted violation is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from benchmarks.oracle.books import Acknowledged, Change, Journal, Mark, Record, SideFile
from benchmarks.oracle.catalogue import FAULTS, named
from benchmarks.oracle.checker import Expectation, Verdict, check
from benchmarks.oracle.reliability_page import ROWS, page
from benchmarks.oracle.report import HEAD, holds, percentile
from benchmarks.oracle.results import Results
from benchmarks.oracle.scene import Run


@dataclass
class World:
    """Two tasks: `a` ran once on one; `b` was lost with agent two, and ran again on one."""

    journal: list[Acknowledged] = field(
        default_factory=lambda: [
            Acknowledged("k1", ("a",), 0.0, 0.1),
            Acknowledged("k2", ("b",), 0.0, 0.1, stop=True),
        ]
    )
    marks: list[Mark] = field(
        default_factory=lambda: [
            Mark("a", 1, "begin", 1.0, 10, "work-a1"),
            Mark("a", 1, "end", 1.1, 10, "work-a1"),
            Mark("b", 1, "begin", 1.0, 11, "work-b1"),
            Mark("b", 2, "begin", 3.0, 10, "work-b2"),
            Mark("b", 2, "end", 3.1, 10, "work-b2"),
        ]
    )
    records: dict[str, Record] = field(
        default_factory=lambda: {
            "a": Record("a", "SUCCEEDED", 1, 0, 0, "one", result_of("a", 1)),
            "b": Record("b", "SUCCEEDED", 2, 0, 1, "one", result_of("b", 2)),
        }
    )
    events: list[Change] = field(
        default_factory=lambda: [
            Change(0.1, "a", "ASSIGNED", 1, "one", term=1),
            Change(0.1, "b", "ASSIGNED", 1, "two", term=1),
            Change(1.2, "a", "SUCCEEDED", 1, "one", term=1),
            Change(2.0, agent="two", agent_state="DOWN", term=1),
            Change(2.0, "b", "PENDING", 1, term=1, why="two died"),
            Change(2.1, "b", "ASSIGNED", 2, "one", term=2),
            Change(3.2, "b", "SUCCEEDED", 2, "one", term=2),
        ]
    )
    expectation: Expectation = field(
        default_factory=lambda: Expectation(frozenset({"two"}), deaths=True)
    )

    def verdict(self) -> Verdict:
        return check(self.journal, self.marks, self.records, self.events, self.expectation)


def result_of(task: str, attempt: int) -> dict[str, object]:
    return {"n": 0, "task": task, "attempt": attempt, "token": f"work-{task}{attempt}"}


def test_balanced_books_are_clean_and_a_second_execution_is_only_counted() -> None:
    verdict = World().verdict()
    assert verdict.violations() == []
    assert verdict.clean
    assert (verdict.duplicate_executions, verdict.unrecorded_executions) == (1, 0)


def test_a_late_end_that_was_fenced_is_only_counted() -> None:
    world = World(journal=[Acknowledged("k1", ("a",), 0, 0), Acknowledged("k2", ("b",), 0, 0)])
    world.marks.append(Mark("b", 1, "end", 9.0, 11, "work-b1"))
    verdict = world.verdict()
    assert verdict.clean
    assert verdict.unrecorded_executions == 1


def forget_a_task(world: World) -> None:
    del world.records["a"]


def leave_a_task_open(world: World) -> None:
    world.records["a"] = replace(world.records["a"], state="RUNNING", result=None)


def end_otherwise(world: World) -> None:
    world.records["a"] = replace(world.records["a"], state="DEAD", result=None)


def answer_a_key_twice(world: World) -> None:
    world.records["c"] = replace(world.records["a"], id="c", result=None)
    world.journal.append(Acknowledged("k1", ("c",), 0.0, 0.2))


def make_a_task_that_nobody_knows(world: World) -> None:
    world.records["c"] = replace(world.records["a"], id="c", result=None)


def give_an_id_to_two_submissions(world: World) -> None:
    world.journal.append(Acknowledged("k3", ("a",), 0.0, 0.2))


def end_twice(world: World) -> None:
    world.events.append(Change(4.0, "a", "SUCCEEDED", 1, "one", term=2))


def go_on_after_the_end(world: World) -> None:
    world.events.append(Change(4.0, "a", "ASSIGNED", 1, "one", term=2))


def overlap(world: World) -> None:
    world.marks.append(Mark("b", 1, "end", 3.05, 11, "work-b1"))


def record_the_result_of_an_earlier_attempt(world: World) -> None:
    world.marks.append(Mark("b", 1, "end", 2.5, 11, "work-b1"))
    world.records["b"] = replace(world.records["b"], result=result_of("b", 1))


def record_the_result_of_another_task(world: World) -> None:
    world.records["b"] = replace(world.records["b"], result=result_of("a", 1))


def record_a_result_without_an_execution(world: World) -> None:
    world.marks = [mark for mark in world.marks if (mark.task, mark.phase) != ("a", "end")]


def accept_an_attempt_that_is_over(world: World) -> None:
    world.events.insert(6, Change(3.0, "b", "RUNNING", 1, "two", term=2))


def write_with_an_old_term(world: World) -> None:
    world.events[6] = replace(world.events[6], term=1)


def name_different_attempts(world: World) -> None:
    world.events[6] = replace(world.events[6], attempt=3)


def charge_a_failure(world: World) -> None:
    world.records["a"] = replace(world.records["a"], failures=1)


def charge_a_drain(world: World) -> None:
    world.expectation = Expectation(frozenset({"two"}))


def charge_a_death_elsewhere(world: World) -> None:
    world.records["a"] = replace(world.records["a"], agent_deaths=1)


def charge_a_death_twice(world: World) -> None:
    world.records["b"] = replace(world.records["b"], agent_deaths=2)


def move_without_reason(world: World) -> None:
    world.expectation = Expectation(frozenset({"three"}), deaths=True)
    world.events[3] = replace(world.events[3], agent="three")
    world.records["b"] = replace(world.records["b"], agent_deaths=0)


def give_up_a_living_agent(world: World) -> None:
    world.events.append(Change(4.0, agent="one", agent_state="DOWN", term=2))


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (forget_a_task, "lost"),
        (leave_a_task_open, "lost"),
        (end_otherwise, "lost"),
        (answer_a_key_twice, "doubled"),
        (make_a_task_that_nobody_knows, "doubled"),
        (give_an_id_to_two_submissions, "doubled"),
        (end_twice, "doubled"),
        (go_on_after_the_end, "doubled"),
        (overlap, "doubled"),
        (record_the_result_of_an_earlier_attempt, "stale"),
        (record_the_result_of_another_task, "stale"),
        (record_a_result_without_an_execution, "stale"),
        (accept_an_attempt_that_is_over, "stale"),
        (write_with_an_old_term, "stale"),
        (name_different_attempts, "stale"),
        (charge_a_failure, "charged"),
        (charge_a_drain, "charged"),
        (charge_a_death_elsewhere, "charged"),
        (charge_a_death_twice, "charged"),
        (move_without_reason, "moved"),
        (give_up_a_living_agent, "moved"),
    ],
)
def test_a_planted_violation_is_found_and_named(plant: Callable[[World], None], kind: str) -> None:
    world = World()
    plant(world)
    verdict = world.verdict()
    kinds = ("lost", "doubled", "stale", "charged", "moved")
    assert [name for name in kinds if getattr(verdict, name)] == [kind], verdict
    assert not verdict.clean


def test_failures_that_the_fault_made_are_excused() -> None:
    world = World()
    world.expectation = replace(world.expectation, failures=1)
    charge_a_failure(world)
    assert world.verdict().clean


def test_a_half_written_mark_waits_for_the_rest(tmp_path: Path) -> None:
    side = SideFile(tmp_path / "marks")
    side.path.write_text("a 1 begin 1.5 10 work-x\na 1 en")
    assert side.read() == [Mark("a", 1, "begin", 1.5, 10, "work-x")]
    assert list(side.running()) == [("a", 1)]
    with side.path.open("a") as file:
        file.write("d 1.7 10 work-x\n")
    assert [mark.phase for mark in side.read()] == ["begin", "end"]
    assert (side.ended(), side.running()) == (1, {})


def test_the_journal_is_on_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.note(Acknowledged("k", ("a", "b"), 1.0, 2.0))
    journal.note(Acknowledged("l", ("a",), 1.0, 2.0))
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert [line[:2] for line in lines] == [["k", ["a", "b"]], ["l", ["a"]]]
    assert journal.ids() == ["a", "b"]


def test_words_of_the_command_line() -> None:
    assert named("all") == list(FAULTS)
    assert named("6,30") == ["6a", "6b", "30"]
    assert named("6b") == ["6b"]
    for wrong in ("99", "a", ""):
        with pytest.raises(KeyError):
            named(wrong)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.99, 4.0), (0.01, 1.0)])
def test_percentiles_are_of_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == expected


def test_a_fault_holds_only_when_clean_and_in_time() -> None:
    good = Run("6a", 1, detections_s=[0.2], recoveries_s=[3.0])
    assert holds("6a", [good])
    assert not holds("6a", [good, replace(good, detections_s=[1.2])])
    assert not holds("6a", [good, replace(good, violations=["x"])])
    assert not holds("6a", [good, replace(good, problems=["x"])])
    assert not holds("6a", [])
    assert holds("6a", [replace(good, notes={"begun_after_decision_max_s": 1.9})])
    assert not holds("6a", [replace(good, notes={"begun_after_decision_max_s": 2.1})])


def test_half_of_the_suspicions_may_be_late() -> None:
    early, late = (Run("6b", 1, notes={"suspected_s": told}) for told in (2.9, 9.0))
    assert holds("6b", [early, late])
    assert not holds("6b", [early, late, late])


def test_the_page_tells_how_fast_tasks_run_again_and_what_overload_does() -> None:
    notes = {
        "begun_after_decision": 3,
        "begun_after_decision_median_s": 0.1,
        "begun_after_decision_max_s": 0.25,
        "suspected_s": 2.5,
    }
    runs = {
        "6b": [Run("6b", 1, notes=notes), Run("6b", 2)],
        "32": [Run("32", 1, notes={"goodput_share": 0.87})],
    }
    machine = dict.fromkeys(
        ("cores", "cpu", "memory_gib", "kernel", "file_system", "fsync_ms"), "x"
    )
    facts = {"machine": machine, "versions": {}, "agents": 3, "command": "c", "parts": ""}
    lines = page(runs, {**facts, "order": "o", "schedules": {}}).splitlines()
    assert "| 6b | 3 | 0.10 / 0.25 | – | – | 2.50 / 2.50 |" in lines
    assert "| goodput, share of the peak | 87% | 87% | 87% |" in lines


def test_the_page_shows_what_did_not_hold() -> None:
    machine = dict.fromkeys(
        ("cores", "cpu", "memory_gib", "kernel", "file_system", "fsync_ms"), "x"
    )
    facts = {"machine": machine, "versions": {}, "agents": 3, "command": "c", "parts": ""}
    facts["order"] = "one after another"
    told = {"count": 10, "held": False, "said": ["seed 3 failed"], "took_s": 60.0}
    runs = {
        "5": [Run("5", 1, tasks=7, lost=1, violations=["a is lost"])],
        "22": [Run("22", 1, skipped="network namespaces need root")],
    }
    lines = page(runs, {**facts, "schedules": told}).splitlines()
    rows = {line.split(" | ")[0]: line for line in lines if line.startswith("| ")}
    assert {line.count("|") for line in rows.values()} == {len(HEAD) + 1}
    assert "**no**" in rows["| 5"]
    assert "skipped: network namespaces need root" in rows["| 22"]
    assert "* fault 5, seed 1: a is lost" in lines
    assert "seed 3 failed" in lines


def test_every_fault_is_explained() -> None:
    assert set(FAULTS) <= set(ROWS)


def test_results_are_kept_by_seed_and_left_out_only_when_all_was_well(tmp_path: Path) -> None:
    results = Results(tmp_path / "kept")
    results.keep(Run("22", 1, skipped="no root"))
    assert holds("22", results.of("22"))
    for run in (
        Run("22", 2, code="new"),
        Run("22", 1, code="new", problems=["x"]),
        Run("22", 3, code="old"),
    ):
        results.keep(run)
    assert [run.seed for run in results.of("22")] == [1, 2, 3]
    assert results.held("22", "new") == {2}
    assert list(results.all()) == ["22"]
    assert not holds("22", results.of("22"))
