"""Durations as people write them ("500ms", "60s", "1h30m") to milliseconds, and back."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from muster.domain.errors import InvalidInput
from muster.domain.task import MAX_DURATION_MS

# Longer than any duration up to MAX_DURATION_MS needs; bounds the arithmetic.
_MAX_CHARS = 40
_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_WHOLE = re.compile(
    r"(?:(?P<d>[0-9]+(?:\.[0-9]+)?)d)?(?:(?P<h>[0-9]+(?:\.[0-9]+)?)h)?"
    r"(?:(?P<m>[0-9]+(?:\.[0-9]+)?)m(?!s))?(?:(?P<s>[0-9]+(?:\.[0-9]+)?)s)?"
    r"(?:(?P<ms>[0-9]+(?:\.[0-9]+)?)ms)?",
    re.ASCII,
)
GRAMMAR = "a duration such as 500ms, 60s, 10m, 1h30m or 2d"


def parse_duration_ms(
    text: str, *, field: str, least_ms: int = 1, most_ms: int = MAX_DURATION_MS
) -> int:
    """Milliseconds, rounded up to a whole one.

    Units d, h, m, s, ms, each at most once, largest first. Raises InvalidInput naming `field`.
    """
    match = _WHOLE.fullmatch(text) if 0 < len(text) <= _MAX_CHARS else None
    if match is None:
        raise InvalidInput(field, text, f"must be {GRAMMAR}")
    total = sum(
        (Decimal(amount) * _UNIT_MS[unit] for unit, amount in match.groupdict().items() if amount),
        Decimal(0),
    )
    # Compared before rounding: 40 digits of days would be a needlessly large integer.
    rounded = int(total.to_integral_value(rounding=ROUND_CEILING)) if total <= most_ms else -1
    if rounded < least_ms:
        limit = f"must be from {format_duration(least_ms)} to {format_duration(most_ms)}"
        raise InvalidInput(field, text, limit)
    return rounded


def format_duration(duration_ms: int) -> str:
    """The shortest exact text, e.g. 90000 → "1m30s"; 0 → "0s". `parse_duration_ms` takes it."""
    if duration_ms == 0:
        return "0s"
    parts = []
    for unit, unit_ms in _UNIT_MS.items():
        amount, duration_ms = divmod(duration_ms, unit_ms)
        if amount:
            parts.append(f"{amount}{unit}")
    return "".join(parts)
