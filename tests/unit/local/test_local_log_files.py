"""Log files: their bound, and a process's last words."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.local.log_files import last_line, rotate, sentence_of, size_of


def test_a_small_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert not rotate(log, max_bytes=10)
    log.write_text("0123456789")
    assert not rotate(log, max_bytes=10)
    assert log.read_text() == "0123456789"


def test_a_full_log_moves_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(3):
            writer.write(b"%d" % number * 20)
            assert rotate(log, max_bytes=10)
            assert size_of(log) == 0
        writer.write(b"next\n")
    assert log.read_text() == "next\n"
    assert (tmp_path / "a.log.1").read_text() == "2" * 20
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.log", "a.log.1"]


def test_last_words_are_those_of_this_run(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert last_line(log) == ""
    log.write_text("of an earlier run\n")
    offset = size_of(log)
    assert last_line(log, since=offset) == ""
    with log.open("a") as writer:
        writer.write("first\nlast\n\n  \n")
    assert last_line(log, since=offset) == "last"


def test_last_words_after_the_log_was_cut(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("short\n")
    assert last_line(log, since=10_000) == "short"


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("x" * 1_000_000 + "\nthe end\n")
    assert last_line(log) == "the end"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("muster storage: MUSTER_X=1 is not accepted", "MUSTER_X=1 is not accepted"),
        ('{"event": "lost", "level": "error", "error": "no"}', "lost: no"),
        ('{"level":"fatal","msg":"bind: in use"}', "bind: in use"),
        ("{not json", "{not json"),
        ('{"other": 1}', '{"other": 1}'),
        ("\x1b[31mred\x07", " [31mred "),
        ("", ""),
    ],
)
def test_a_line_as_a_sentence(line: str, said: str) -> None:
    assert sentence_of(line) == said


def test_a_long_line_is_cut() -> None:
    assert len(sentence_of("y" * 10_000)) == 400
