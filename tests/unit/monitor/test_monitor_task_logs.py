"""Task logs: kept, cut, deduplicated, bounded, and safe before they are acknowledged."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.ids import TaskId, TenantId
from muster_monitor.acknowledgements import Acknowledgements
from muster_monitor.attempt_log import HEAD_BYTES, TAIL_BYTES, AttemptLog
from muster_monitor.log_lines import MAX_LINE_BYTES, Line, cut_text, decode, decode_all, encode
from muster_monitor.task_logs import FLUSH_EVERY_MS, LogKey, TaskLogs

TENANT = TenantId("default")
KEY = LogKey(TENANT, TaskId("t1"), 1)
NOW = 1_000_000


def line(index: int, text: str = "hello") -> Line:
    return Line(index, 1_700_000_000_000 + index, "stdout", "", text)


def lines(*indexes: int) -> list[Line]:
    return [line(index) for index in indexes]


def indexes_of(log: AttemptLog | None) -> list[int]:
    assert log is not None
    return [found.index for found in decode_all(log.blob()) if not found.cut_lines]


def flush(logs: TaskLogs, key: LogKey, now_ms: int) -> bytes:
    what = logs.flush_of(key)
    assert what is not None
    logs.stored(what, now_ms)
    return what.blob


@given(st.text(), st.text())
def test_a_stored_line_is_one_line_and_comes_back(level: str, text: str) -> None:
    try:
        (level + text).encode()
    except UnicodeEncodeError:
        return
    original = Line(3, 17, "stderr", level, text)
    encoded = encode(original)
    assert encoded.count(b"\n") == 1
    assert all(byte >= 32 for byte in encoded[:-1])
    assert decode(encoded) == original


@pytest.mark.parametrize(
    "bad", [b"", b"{", b"[]", b"null", b'{"index":1}', b'{"index":"x"}', b"\xff"]
)
def test_what_is_no_line_is_skipped(bad: bytes) -> None:
    assert decode(bad) is None


@given(st.text(max_size=60), st.integers(50, 120))
def test_cut_lines_fit_and_say_so(text: str, limit: int) -> None:
    text = (text * 40).encode(errors="ignore").decode()
    cut = cut_text(text, limit)
    assert len(cut.encode()) <= limit
    assert cut == text if len(text.encode()) <= limit else cut.endswith("bytes]")


def test_a_long_line_is_cut_by_the_default_limit() -> None:
    assert len(cut_text("ü" * MAX_LINE_BYTES).encode()) <= MAX_LINE_BYTES


def test_a_repeated_report_stores_a_line_once() -> None:
    logs = TaskLogs()
    logs.append(KEY, lines(0, 1, 2), NOW)
    logs.append(KEY, lines(0, 1, 2, 3), NOW)
    assert indexes_of(logs.get(KEY)) == [0, 1, 2, 3]


def test_a_long_log_keeps_its_head_and_its_newest_lines() -> None:
    log = AttemptLog(NOW)
    text = "x" * 1000
    count = 2 * (HEAD_BYTES + TAIL_BYTES) // 1000
    for index in range(count):
        log.append(line(index, text))
    blob = log.blob()
    assert HEAD_BYTES + TAIL_BYTES - 4096 <= len(blob) <= HEAD_BYTES + TAIL_BYTES + 512
    found = decode_all(blob)
    marks = [number for number, kept in enumerate(found) if kept.cut_lines]
    assert len(marks) == 1
    kept = [f.index for f in found if not f.cut_lines]
    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert found[marks[0]].cut_lines == count - len(kept)
    assert log.truncated
    # Head without a gap, tail without a gap.
    assert kept[: marks[0]] == list(range(marks[0]))
    assert kept[marks[0] :] == list(range(kept[marks[0]], count))


@given(st.integers(1, 400), st.integers(1, 60), st.booleans())
def test_pages_of_a_reader_hold_every_kept_line_once(count: int, page: int, cut: bool) -> None:
    log = AttemptLog(NOW)
    for index in range(count):
        log.append(line(index))
    if cut:
        log.shed()
        log.append(line(count))
    position, read = -1, []
    while batch := log.lines_after(position, page):
        found = decode_all(b"".join(batch))
        position = found[-1].index
        read += found
    assert read == decode_all(log.blob())


def test_acknowledged_only_after_storage_holds_it() -> None:
    logs, acks = TaskLogs(), Acknowledgements()
    acks.received(1, [])
    acks.received(2, [(KEY, logs.append(KEY, lines(0, 1), NOW))])
    acks.received(3, [])
    assert acks.advance(logs.is_safe) == 1
    flush(logs, KEY, NOW)
    assert acks.advance(logs.is_safe) == 3


def test_lines_that_came_during_the_flush_are_not_acknowledged_by_it() -> None:
    logs, acks = TaskLogs(), Acknowledgements()
    acks.received(1, [(KEY, logs.append(KEY, lines(0), NOW))])
    under_way = logs.flush_of(KEY)
    assert under_way is not None
    acks.received(2, [(KEY, logs.append(KEY, lines(1), NOW))])
    logs.stored(under_way, NOW)
    assert acks.advance(logs.is_safe) == 1
    flush(logs, KEY, NOW)
    assert acks.advance(logs.is_safe) == 2


def test_a_repeated_report_waits_for_lines_that_are_not_stored_yet() -> None:
    logs, acks = TaskLogs(), Acknowledgements()
    logs.append(KEY, lines(0, 1), NOW)
    acks.received(7, [(KEY, logs.append(KEY, lines(0, 1), NOW))])
    assert acks.advance(logs.is_safe) == 0
    flush(logs, KEY, NOW)
    assert acks.advance(logs.is_safe) == 7
    assert logs.append(KEY, lines(0, 1), NOW) == 0


def test_waiting_reports_are_bounded() -> None:
    logs, acks = TaskLogs(), Acknowledgements(max_waiting=3)
    position = logs.append(KEY, lines(0), NOW)
    for seq in range(1, 6):
        acks.received(seq, [(KEY, position)])
    assert acks.waiting == 3
    assert acks.kept == 2


def test_a_growing_log_is_due_every_ten_seconds_and_an_ended_one_at_once() -> None:
    logs = TaskLogs()
    other = LogKey(TENANT, TaskId("t2"), 1)
    logs.append(KEY, lines(0), NOW)
    logs.append(other, lines(0), NOW)
    assert logs.due(NOW + FLUSH_EVERY_MS - 1, 10) == []
    logs.end(other, NOW)
    assert logs.due(NOW, 10) == [other]
    flush(logs, other, NOW)
    assert logs.due(NOW + FLUSH_EVERY_MS, 10) == [KEY]
    flush(logs, KEY, NOW + FLUSH_EVERY_MS)
    logs.append(KEY, lines(1), NOW + FLUSH_EVERY_MS + 5000)
    assert logs.due(NOW + 2 * FLUSH_EVERY_MS, 10) == []
    assert logs.due(NOW + 2 * FLUSH_EVERY_MS + 5000, 10) == [KEY]


def test_an_end_of_a_log_that_left_memory_marks_the_stored_one() -> None:
    before, after = TaskLogs(), TaskLogs()
    before.append(KEY, lines(0, 1), NOW)
    blob = flush(before, KEY, NOW)
    assert after.end(KEY, NOW) > 0
    assert after.flush_of(KEY) is None
    assert after.due(NOW, 10) == [KEY]
    after.merge_older(KEY, decode_all(blob))
    what = after.flush_of(KEY)
    assert what is not None
    assert (what.blob, what.complete) == (blob, True)


def test_an_end_of_nothing_is_dropped_when_storage_knows_nothing_either() -> None:
    logs, acks = TaskLogs(), Acknowledgements()
    acks.received(1, [(KEY, logs.end(KEY, NOW))])
    logs.merge_older(KEY, [])
    what = logs.flush_of(KEY)
    assert what is not None
    assert what.blob == b""
    logs.give_up(KEY)
    assert acks.advance(logs.is_safe) == 1
    assert (logs.log_count, logs.held_bytes) == (0, 0)


def test_an_end_after_the_flush_makes_the_log_complete() -> None:
    logs = TaskLogs()
    logs.append(KEY, lines(0), NOW)
    flush(logs, KEY, NOW)
    assert logs.end(KEY, NOW) > 0
    what = logs.flush_of(KEY)
    assert what is not None
    assert what.complete
    logs.stored(what, NOW)
    assert logs.end(KEY, NOW) == 0


def test_after_a_restart_the_older_part_is_read_first() -> None:
    before = TaskLogs()
    before.append(KEY, lines(0, 1, 2), NOW)
    blob = flush(before, KEY, NOW)

    after = TaskLogs()
    after.append(KEY, lines(2, 3, 4), NOW)
    log = after.get(KEY)
    assert log is not None
    assert log.wants_older
    assert after.flush_of(KEY) is None
    after.merge_older(KEY, decode_all(blob))
    assert decode_all(flush(after, KEY, NOW)) == lines(0, 1, 2, 3, 4)


def test_lines_that_went_to_another_monitor_meanwhile_are_read_before_the_next_flush() -> None:
    here = TaskLogs()
    here.append(KEY, lines(0, 1), NOW)
    flush(here, KEY, NOW)
    elsewhere = TaskLogs()
    elsewhere.append(KEY, lines(0, 1, 2, 3), NOW)
    stored = flush(elsewhere, KEY, NOW)
    # The agent has come back.
    here.append(KEY, lines(4, 5), NOW)
    assert here.flush_of(KEY) is None
    here.merge_older(KEY, decode_all(stored))
    assert decode_all(flush(here, KEY, NOW)) == lines(0, 1, 2, 3, 4, 5)


def test_a_cut_log_stays_cut_over_a_restart() -> None:
    before = AttemptLog(NOW)
    for index in range(5000):
        before.append(line(index, "x" * 1000))
    old = decode_all(before.blob())
    after = AttemptLog(NOW)
    after.append(line(5000, "y"))
    after.merge_older(old)
    new = decode_all(after.blob())
    assert [f.index for f in new if not f.cut_lines][-1] == 5000
    assert sum(f.cut_lines for f in new) >= sum(f.cut_lines for f in old)
    assert len([f for f in new if not f.cut_lines]) + sum(f.cut_lines for f in new) == 5001
    assert len(after.blob()) <= HEAD_BYTES + TAIL_BYTES + 512


def test_stored_logs_leave_memory_first() -> None:
    logs = TaskLogs(memory_bytes=100_000)
    kept = LogKey(TENANT, TaskId("kept"), 1)
    logs.append(kept, lines(0, 1, 2), NOW)
    for number in range(200):
        key = LogKey(TENANT, TaskId(f"t{number}"), 1)
        logs.append(key, [line(0, "x" * 500)], NOW)
        flush(logs, key, NOW)
    assert logs.held_bytes <= 100_000
    assert indexes_of(logs.get(kept)) == [0, 1, 2]
    assert logs.lost_logs == 0
    assert logs.get(LogKey(TENANT, TaskId("t0"), 1)) is None
    assert logs.get(LogKey(TENANT, TaskId("t199"), 1)) is not None


def test_without_storage_memory_stays_bounded_and_cuts_are_marked() -> None:
    logs = TaskLogs(memory_bytes=200_000)
    for index in range(3000):
        for task in ("a", "b"):
            logs.append(LogKey(TENANT, TaskId(task), 1), [line(index, "x" * 200)], NOW)
        assert logs.held_bytes <= 200_000
    for task in ("a", "b"):
        log = logs.get(LogKey(TENANT, TaskId(task), 1))
        assert log is not None
        kept = indexes_of(log)
        assert kept[0] == 0
        assert kept[-1] == 2999
        assert log.truncated
    assert logs.lost_logs == 0


def test_without_storage_many_small_logs_are_given_up_oldest_first() -> None:
    logs = TaskLogs(memory_bytes=100_000)
    acks = Acknowledgements()
    for number in range(300):
        key = LogKey(TENANT, TaskId(f"t{number}"), 1)
        acks.received(number + 1, [(key, logs.append(key, lines(0), NOW))])
    assert logs.held_bytes <= 100_000
    assert logs.lost_logs > 0
    assert logs.attempts(TENANT, TaskId("t0")) == []
    assert logs.attempts(TENANT, TaskId("t299")) == [1]
    # Nobody waits for what was given up.
    assert acks.advance(logs.is_safe) > 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["append", "repeat", "flush", "end"]),
            st.integers(0, 2),
            st.integers(0, 400),
        ),
        max_size=120,
    )
)
def test_memory_accounting_never_drifts(steps: list[tuple[str, int, int]]) -> None:
    logs = TaskLogs(memory_bytes=8_000)
    following = [0, 0, 0]
    for what, which, size in steps:
        key = LogKey(TENANT, TaskId(f"t{which}"), 1)
        if what == "append":
            logs.append(key, [line(following[which], "x" * size)], NOW)
            following[which] += 1
        elif what == "repeat":
            logs.append(key, lines(max(0, following[which] - 1)), NOW)
        elif what == "end":
            logs.end(key, NOW)
        elif (due := logs.flush_of(key)) is not None:
            logs.stored(due, NOW)
        keys = [LogKey(TENANT, TaskId(f"t{n}"), 1) for n in range(3)]
        found = [log for log in map(logs.get, keys) if log is not None]
        assert logs.held_bytes == sum(log.memory_bytes for log in found) <= 8_000
        assert logs.log_count == len(found)


def test_the_format_is_what_is_documented() -> None:
    record = orjson.loads(encode(Line(0, 5, "stdout", "", "a\x1b[31m\nb")))
    assert record == {
        "index": 0,
        "at_ms": 5,
        "stream": "stdout",
        "level": "",
        "text": "a\x1b[31m\nb",
    }
