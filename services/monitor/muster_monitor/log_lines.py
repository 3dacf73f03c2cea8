"""Log lines as they are stored: NDJSON, one object per line, control characters escaped. Pure.

    {"index":0,"at_ms":1730000000000,"stream":"stdout","level":"","text":"hello"}

Where a log was cut, one line stands for what was left out:

    {"index":17,"at_ms":…,"stream":"log","level":"warning","text":"… 3 lines left out …",
     "cut_lines":3,"cut_bytes":120}
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

# A longer line is cut: nobody reads it, and a screen of logs must fit in one message.
MAX_LINE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """`index` counts the lines of one attempt from 0; `at_ms` is the agent's unix time.

    `cut_lines` and `cut_bytes` are set only on the line that stands for what was left out.
    """

    index: int
    at_ms: int
    stream: str
    level: str
    text: str
    cut_lines: int = 0
    cut_bytes: int = 0


def cut_text(text: str, max_bytes: int = MAX_LINE_BYTES) -> str:
    """`text`, or its beginning and a note of how long it was, within `max_bytes` of UTF-8."""
    if len(text) * 4 <= max_bytes:
        return text
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    note = f" … [line cut, {len(encoded)} bytes]"
    return encoded[: max_bytes - len(note.encode())].decode(errors="ignore") + note


def encode(line: Line) -> bytes:
    """One NDJSON line, newline included."""
    record: dict[str, object] = {
        "index": line.index,
        "at_ms": line.at_ms,
        "stream": line.stream,
        "level": line.level,
        "text": line.text,
    }
    if line.cut_lines:
        record["cut_lines"], record["cut_bytes"] = line.cut_lines, line.cut_bytes
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def decode(encoded: bytes) -> Line | None:
    """None when this is no line of ours (a blob damaged or written by somebody else)."""
    try:
        record = orjson.loads(encoded)
        return Line(
            index=int(record["index"]),
            at_ms=int(record["at_ms"]),
            stream=str(record["stream"]),
            level=str(record["level"]),
            text=str(record["text"]),
            cut_lines=int(record.get("cut_lines", 0)),
            cut_bytes=int(record.get("cut_bytes", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def decode_all(blob: bytes) -> list[Line]:
    """Every sound line of a blob, in its order."""
    lines = (decode(encoded) for encoded in blob.splitlines())
    return [line for line in lines if line is not None]


def cut_mark(index: int, at_ms: int, lines: int, size_bytes: int) -> Line:
    text = f"… {lines} lines ({size_bytes} bytes) left out …"
    return Line(index, at_ms, "log", "warning", text, lines, size_bytes)
