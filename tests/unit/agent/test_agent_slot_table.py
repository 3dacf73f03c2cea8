"""The mapped file from which the supervisor learns what had started."""

from __future__ import annotations

from pathlib import Path

from muster.agent.events import AttemptKey
from muster.agent.slot_table import SlotTable, StartedAttempt, read_slot_table
from muster.domain.ids import DEFAULT_TENANT, TaskId

A = AttemptKey(TaskId("0" * 25 + "a"), 3)
B = AttemptKey(TaskId("0" * 25 + "b"), 1)


def test_the_reader_sees_what_has_started_and_not_ended(tmp_path: Path) -> None:
    path = tmp_path / "slots.bin"
    table = SlotTable(path, records=4)
    table.identify(incarnation=7, term=3, leader="127.0.0.1:99")
    table.started(A, DEFAULT_TENANT)
    table.started(B, DEFAULT_TENANT)
    table.ended(A)
    table.set_stop_deadline(12_345)
    view = read_slot_table(path)
    assert view is not None
    assert (view.incarnation, view.term, view.leader) == (7, 3, "127.0.0.1:99")
    assert view.stop_deadline_ms == 12_345
    assert view.started == (StartedAttempt(B, DEFAULT_TENANT),)
    head = read_slot_table(path, attempts=False)
    assert head is not None
    assert head.started == ()
    table.close()
    assert read_slot_table(path) == view


def test_more_attempts_than_records_are_not_shown_and_harm_nothing(tmp_path: Path) -> None:
    table = SlotTable(tmp_path / "t", records=1)
    table.started(A, DEFAULT_TENANT)
    table.started(B, DEFAULT_TENANT)
    table.ended(B)
    table.ended(A)
    table.started(B, DEFAULT_TENANT)
    view = read_slot_table(tmp_path / "t")
    assert view is not None
    assert [s.key for s in view.started] == [B]


def test_a_missing_or_foreign_file_is_no_table(tmp_path: Path) -> None:
    assert read_slot_table(tmp_path / "none") is None
    (tmp_path / "short").write_bytes(b"x")
    assert read_slot_table(tmp_path / "short") is None
    (tmp_path / "other").write_bytes(b"x" * 4096)
    assert read_slot_table(tmp_path / "other") is None
