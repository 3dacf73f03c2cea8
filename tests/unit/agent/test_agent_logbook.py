"""Log lines between what prints and the monitor."""

from __future__ import annotations

from muster.agent.events import AttemptKey
from muster.agent.logbook import (
    BURST_LINES,
    LINES_PER_S,
    MAX_LINE_CHARS,
    MAX_PENDING_BYTES,
    MAX_TASK_LOG_BYTES,
    LogBook,
)
from muster.domain.ids import DEFAULT_TENANT, TaskId

KEY = AttemptKey(TaskId("a"), 1)


def write(book: LogBook, text: str, now_ms: int = 0, key: AttemptKey = KEY) -> None:
    book.write(key, DEFAULT_TENANT, "stdout", "", text, now_ms)


def drain(book: LogBook) -> list[str]:
    texts: list[str] = []
    seq = 0
    while book.has_pending:
        seq += 1
        texts += [line.text for line in book.take(seq).lines]
        book.confirmed(seq)
    return texts


def test_lines_are_split_and_numbered_and_an_end_follows_them() -> None:
    book = LogBook()
    write(book, "one\r\ntwo")
    write(book, "three")
    book.end(KEY, 5)
    batch = book.take(1)
    assert [(line.text, line.number) for line in batch.lines] == [
        ("one", 0),
        ("two", 1),
        ("three", 2),
    ]
    assert [end.key for end in batch.ends] == [KEY]


def test_an_attempt_without_a_line_leaves_no_trace() -> None:
    book = LogBook()
    book.end(KEY, 0)
    assert not book.has_pending


def test_what_was_not_confirmed_is_sent_again_in_the_same_order() -> None:
    book = LogBook()
    for text in ("a", "b", "c"):
        write(book, text)
        book.take(ord(text))
    book.confirmed(ord("a"))
    book.lost()
    assert [line.text for line in book.take(200).lines] == ["b", "c"]
    book.confirmed(200)
    book.lost()
    assert not book.has_pending


def test_a_task_log_ends_at_its_cap_and_says_so() -> None:
    book = LogBook()
    for n in range(300):
        write(book, "x" * 8000, now_ms=n * 1000)
    texts = drain(book)
    assert sum(map(len, texts[:-1])) <= MAX_TASK_LOG_BYTES
    assert len(texts) < 300
    assert "the log ends here" in texts[-1]


def test_a_long_line_is_cut_and_says_so() -> None:
    book = LogBook()
    write(book, "x" * (MAX_LINE_CHARS + 7))
    assert drain(book)[0].endswith("… [7 characters more]")


def test_lines_beyond_the_rate_are_left_out_and_counted() -> None:
    book = LogBook()
    write(book, "\n".join(["x"] * (BURST_LINES + 30)))
    write(book, "later", now_ms=1000)
    texts = drain(book)
    assert len(texts) == BURST_LINES + 2
    assert texts[-2].startswith(f"[30 lines left out: more than {LINES_PER_S}")
    assert texts[-1] == "later"


def test_without_a_monitor_the_oldest_lines_give_way_but_never_an_end() -> None:
    book = LogBook()
    keys = [AttemptKey(TaskId(f"t{n}"), 1) for n in range(20)]
    for n, key in enumerate(keys):
        for step in range(120):
            write(book, "x" * 8000, now_ms=step * 1000, key=key)
        book.end(key, 10_000 * n)
    assert book.dropped_lines > 0
    size, ends, seq = 0, 0, 0
    while book.has_pending:
        seq += 1
        batch = book.take(seq)
        size += sum(len(line.text) for line in batch.lines)
        ends += len(batch.ends)
        book.confirmed(seq)
    assert size <= MAX_PENDING_BYTES
    assert ends == len(keys)


def test_new_lines_are_announced() -> None:
    calls: list[int] = []
    book = LogBook(lambda: calls.append(1))
    book.write_agent("info", "hello", 0)
    assert calls == [1]
