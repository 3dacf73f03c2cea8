"""How pages are read: blocks, notes, commands and their output, links."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.doc_blocks import PageError, anchors_of, blocks_of, is_alike, links_of, steps_of

PAGE = Path("page.md")


def test_blocks_have_their_language_line_and_note() -> None:
    text = (
        "a\n```sh\nls\n```\n<!-- exits: 3 -->\n```sh\nfalse\n```\n"
        "- x\n\n  ```python\n  if 1:\n      pass\n  ```\n"
    )
    first, second, third = blocks_of(PAGE, text)
    assert (first.language, first.line, first.text, first.is_run) == ("sh", 3, "ls\n", True)
    assert (second.exits, second.place) == (3, "page.md:7")
    assert third.text == "if 1:\n    pass\n"


@pytest.mark.parametrize("note", ["<!-- not run: it takes an hour -->", "<!-- file: a.py -->"])
def test_noted_blocks_are_not_run(note: str) -> None:
    (block,) = blocks_of(PAGE, f"{note}\n```python\nx\n```\n")
    assert not block.is_run


def test_a_block_without_an_end_and_a_note_without_words_are_errors() -> None:
    with pytest.raises(PageError, match="no end"):
        blocks_of(PAGE, "```sh\nls\n")
    with pytest.raises(PageError, match="says nothing"):
        blocks_of(PAGE, "<!-- not run -->\n```sh\nls\n```\n")


def test_console_blocks_are_commands_with_their_output() -> None:
    (block,) = blocks_of(PAGE, "```console\n$ echo a \\\n> b\na b\n$ true\n```\n")
    first, second = steps_of(block)
    assert (first.command, first.output, first.line) == ("echo a \\\nb", "a b", 2)
    assert (second.command, second.output) == ("true", "")


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        ("a  b", "a b\n", True),
        ("a", "b", False),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
        ("x … z", "x y z", True),
        ("x … z", "x y", False),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("…", "", True),
        ("a\n…", "b\nc", False),
        ("01m81d6454frj0r29jen2e0000 on agent-1", "01m81d63d4j7pfr6ne77ce0000 on agent-2", True),
        ("at 10:35:13.531", "at 23:01:00.000", True),
        ("2026-11-22T10:35:11.001Z", "2027-01-01T00:00:00.123Z", True),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:1234/v1", True),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:1234/v2", False),
    ],
)
def test_output_is_compared_without_what_varies(shown: str, printed: str, alike: bool) -> None:
    assert is_alike(shown, printed) is alike


def test_links_and_anchors() -> None:
    text = (
        "[a](b.md#c) `[x](y)`\n```sh\n[no](no.md)\n```\n"
        "[c\nd](e)\n## A `b`: c, d\n## Twice\n## Twice\n"
    )
    assert links_of(text) == ["b.md#c", "e"]
    assert anchors_of(text) == {"a-b-c-d", "twice", "twice-1"}
