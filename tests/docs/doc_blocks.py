"""Fenced blocks of Markdown pages, the notes above them, and the comparison of what they print.

A note is an HTML comment on the line above a fence; readers do not see it:

    <!-- file: bots.py -->      the block is written to that file instead of being run
    <!-- exits: 1 -->           the block (its last command) must end with that exit code
    <!-- output -->             the block is what the block before it has printed
    <!-- not run: WHY -->       the block is not run; WHY says why it cannot be
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RUNNABLE = frozenset({"sh", "console", "python"})
# What is shown and not run: data, text, diagrams, parts of configuration files.
SHOWN = frozenset({"json", "text", "mermaid", "ini", "yaml"})

_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^`\s]*)\s*")
_NOTE = re.compile(r"\s*<!-- (?P<kind>file|exits|output|not run)(?:: (?P<text>.+?))? -->\s*")


class PageError(Exception):
    """The page is not written as the tests need it."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `line` is that of its first line of text; `note` is (kind, text)."""

    page: Path
    line: int
    language: str
    text: str
    note: tuple[str, str] = ("", "")

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in RUNNABLE and self.note[0] not in ("not run", "file", "output")

    @property
    def exits(self) -> int:
        return int(self.note[1]) if self.note[0] == "exits" else 0


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """All fenced blocks of a page. Raises PageError."""
    lines = (page.read_text() if text is None else text).splitlines()
    blocks: list[Block] = []
    number = 0
    while number < len(lines):
        fence = _FENCE.fullmatch(lines[number])
        note = _NOTE.fullmatch(lines[number - 1]) if number else None
        number += 1
        if fence is None:
            continue
        begin, end = number, fence["indent"] + fence["ticks"]
        while number < len(lines) and lines[number].rstrip() != end:
            number += 1
        if number == len(lines):
            raise PageError(f"{page.name}:{begin}: the block has no end")
        inner = [line.removeprefix(fence["indent"]) for line in lines[begin:number]]
        noted = (note["kind"], note["text"] or "") if note else ("", "")
        if noted[0] in ("not run", "file", "exits") and not noted[1]:
            raise PageError(f"{page.name}:{begin}: the note {noted[0]!r} says nothing")
        blocks.append(
            Block(page, begin + 1, fence["language"], "".join(f"{i}\n" for i in inner), noted)
        )
        number += 1
    return blocks


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a `console` block and what it prints. `line` counts within the page."""

    line: int
    command: str
    output: str


def steps_of(block: Block) -> list[Step]:
    """`$ command` lines with what follows each; `> ` goes on with the command."""
    steps: list[tuple[int, list[str], list[str]]] = []
    for offset, line in enumerate(block.text.splitlines()):
        if line.startswith("$ "):
            steps.append((block.line + offset, [line[2:]], []))
        elif not steps:
            raise PageError(f"{block.place}: a console block begins with `$ `")
        elif line.startswith("> ") and not steps[-1][2]:
            steps[-1][1].append(line[2:])
        else:
            steps[-1][2].append(line)
    return [Step(at, "\n".join(command), "\n".join(output)) for at, command, output in steps]


# What differs from run to run and is of one shape. Other things are written as `…`.
_VARYING = (
    (re.compile(r"\b[0-9a-hjkmnp-tv-z]{26}\b"), "<task>"),
    (re.compile(r"\bmst_[0-9a-f_…]+"), "<key>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?"), "<time>"),
    (re.compile(r"\b\d\d:\d\d:\d\d(\.\d+)?\b"), "<time>"),
    (re.compile(r"\b127\.0\.0\.1:\d+"), "<address>"),
    (re.compile(r"\bagent-\d+\b"), "<agent>"),
    (re.compile(r"[ \t]+"), " "),
)


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, name in _VARYING:
        line = pattern.sub(name, line)
    return line.strip()


def is_alike(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed.

    `…` stands for anything within a line, a line of `…` alone for any lines.
    """
    return _alike(
        [plain(line) for line in shown.strip().splitlines()],
        [plain(line) for line in printed.strip().splitlines()],
    )


def _alike(shown: Sequence[str], printed: Sequence[str]) -> bool:
    if not shown:
        return not printed
    if shown[0] == "…":
        return any(_alike(shown[1:], printed[skip:]) for skip in range(len(printed) + 1))
    if not printed:
        return False
    pattern = ".*".join(re.escape(part) for part in shown[0].split("…"))
    return re.fullmatch(pattern, printed[0]) is not None and _alike(shown[1:], printed[1:])


def links_of(text: str) -> list[str]:
    """Targets of inline links, those within code left out."""
    outside: list[str] = []
    ticks = ""
    for line in text.splitlines():
        fence = _FENCE.fullmatch(line)
        if ticks:
            if line.strip() == ticks:
                ticks = ""
        elif fence is not None:
            ticks = fence["ticks"]
        else:
            outside.append(line)
    without_code = re.sub(r"`[^`]*`", "", "\n".join(outside))
    return re.findall(r"\]\(([^)\s]+)\)", without_code)


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    anchors: set[str] = set()
    for heading in re.findall(r"(?m)^#{1,6} +(.+?)\s*$", text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = sum(1 for a in anchors if a == slug or re.fullmatch(re.escape(slug) + r"-\d+", a))
        anchors.add(f"{slug}-{count}" if count else slug)
    return anchors
