"""Log lines as they may be looked at and shown: short, one line, nothing that controls. Pure.

Whoever prints a line may be hostile: escape sequences rewrite a terminal, a carriage return forges
a line, right-to-left marks turn a sentence round. All of it is shown, and none of it works.
"""

from __future__ import annotations

import re

# A longer line says what it says at its beginning.
MAX_ANALYSED_CHARS = 512
_DIGITS = re.compile(r"\d+(?:[.,:]\d+)*")
_HEX = re.compile(r"\b(?:0[xX])?(?=[0-9a-fA-F-]*\d)[0-9a-fA-F][0-9a-fA-F-]{7,63}\b")


def plain(text: str) -> str:
    """At most MAX_ANALYSED_CHARS characters of `text`, what is not printable written out."""
    text = text[:MAX_ANALYSED_CHARS]
    if text.isprintable():
        return text
    escaped = "".join(
        char if char.isprintable() else " " if char == "\t" else _written_out(char) for char in text
    )
    return escaped[:MAX_ANALYSED_CHARS]


def _written_out(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def masked(text: str) -> str:
    """The text with what differs from time to time left out: numbers and long hexadecimal ids."""
    return _DIGITS.sub("<n>", _HEX.sub("<id>", text))
