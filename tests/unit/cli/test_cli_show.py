"""Tables of any length, in columns that fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

from muster.cli import show


def test_rows_of_many_chunks_come_out_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("N", "WORD"), ((number, "x") for number in range(2500)), empty="none")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "N    WORD"
    assert [line.split() for line in lines[1:]] == [[str(n), "x"] for n in range(2500)]


def test_rows_are_printed_before_the_last_has_come(capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> Iterator[tuple[object]]:
        for number in range(1500):
            yield (number,)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        show.table(("N",), rows(), empty="none")
    assert "999" in capsys.readouterr().out.splitlines()


def test_a_table_without_rows_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("N",), (), empty="no numbers")
    assert capsys.readouterr().out == "no numbers\n"


def test_wide_characters_and_control_characters_keep_the_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show.table(("NAME", "NEXT"), [("漢字漢字", "P"), ("x\x1b[31m\ty", "Q")], empty="none")
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in "".join(lines)
    assert {
        cell_len(line[: line.index(end)]) for line, end in zip(lines[1:], "PQ", strict=True)
    } == {cell_len(lines[0][: lines[0].index("NEXT")])}


@pytest.mark.parametrize(
    ("widths", "room", "fitted"),
    [
        ([26, 9, 40], 79, [26, 9, 40]),
        ([26, 9, 40], 69, [26, 9, 30]),
        ([26, 60, 40], 80, [26, 44, 6]),
        ([26, 60, 3], 60, [26, 32, 3]),
    ],
)
def test_the_last_column_gives_way_first(widths: list[int], room: int, fitted: list[int]) -> None:
    assert show.fit(widths, room) == fitted


def test_what_is_cut_ends_in_an_ellipsis(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "_FILE_WIDTH", 20)
    show.table(("ID", "WHY"), [("abc", "a sentence that is too long")], empty="none")
    assert capsys.readouterr().out == "ID   WHY\nabc  a sentence tha…\n"


@pytest.mark.parametrize("colours", [True, False])
def test_states_have_colours_where_the_terminal_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, colours: bool
) -> None:
    terminal = Console(force_terminal=True, color_system="standard", no_color=not colours, width=80)
    monkeypatch.setattr(show, "console", lambda: terminal)
    show.table(("STATE", "ID"), [("FAILED", "7")], empty="none")
    out = capsys.readouterr().out
    assert ("\x1b[31mFAILED\x1b[0m  7\n" in out) == colours
    assert ("\x1b" in out) == colours
