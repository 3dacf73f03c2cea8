"""The log files of child processes: bounded in size, and read for a process's last words."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

# Two files of this size per process: enough for hours, and 11 processes stay under 200 MiB.
MAX_LOG_BYTES = 8 * 1024 * 1024
_TAIL_BYTES = 16 * 1024
_MAX_LINE_CHARS = 400
# How a process introduces its last word; whoever quotes it names the process himself.
_INTRODUCTION = re.compile(r"muster [a-z-]+: ")


def size_of(path: Path) -> int:
    """Bytes of the file, 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def rotate(path: Path, max_bytes: int = MAX_LOG_BYTES) -> bool:
    """Moves a full log's text to `<name>.1`, replacing what was there.

    The process keeps writing to the same open file (in append mode), so the file is emptied
    and not renamed; lines written between copy and cut are lost.
    """
    if size_of(path) <= max_bytes:
        return False
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)
    return True


def last_line(path: Path, since: int = 0) -> str:
    """The last line that says something after byte `since`, as a sentence; "" when none does.

    `since` past the end means that the file was cut meanwhile: all of it counts.
    """
    size = size_of(path)
    start = since if since <= size else 0
    if size == 0:
        return ""
    with path.open("rb") as file:
        file.seek(max(start, size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        if text := sentence_of(line):
            return text
    return ""


def sentence_of(line: str) -> str:
    """The message of a log line: JSON lines give their `event` or `msg` and `error`."""
    text = line.strip()
    if text.startswith("{"):
        try:
            record = json.loads(text)
        except ValueError:
            record = {}
        said = [str(record[key]) for key in ("event", "msg", "error") if record.get(key)]
        text = ": ".join(said) or text
    text = _INTRODUCTION.sub("", text, count=1) if text.startswith("muster ") else text
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= _MAX_LINE_CHARS else text[: _MAX_LINE_CHARS - 1] + "…"
