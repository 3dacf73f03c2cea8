"""Durations as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.durations import format_duration, parse_duration_ms
from muster.domain.errors import InvalidInput
from muster.domain.task import MAX_DURATION_MS


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("60s", 60_000),
        ("10m", 600_000),
        ("1h30m", 5_400_000),
        ("500ms", 500),
        ("1.5s", 1_500),
        ("0.5ms", 1),
        ("2d", 172_800_000),
        ("1h1m1s1ms", 3_661_001),
        ("1m5ms", 60_005),
        ("90m", 5_400_000),
    ],
)
def test_a_duration_is_read(text: str, ms: int) -> None:
    assert parse_duration_ms(text, field="timeout") == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "60",
        "s",
        "-1s",
        "+1s",
        "1 s",
        "1s ",
        "1S",
        "1sec",
        "1s1m",
        "1s1s",
        "1e3s",
        "NaNs",
        "infs",
        "0s",
        "0.0ms",
        ".5s",
        "1.s",
        "٣s",
        "9" * 50 + "d",
        "4000d",
        "1w",
        "1s\n",
        "1s\x00",
    ],
)
def test_what_is_no_duration_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_duration_ms(text, field="tasks[3].timeout")
    assert caught.value.field == "tasks[3].timeout"


def test_bounds_are_named() -> None:
    with pytest.raises(InvalidInput, match="from 0s to 10m"):
        parse_duration_ms("11m", field="wait", least_ms=0, most_ms=600_000)
    assert parse_duration_ms("0s", field="wait", least_ms=0) == 0


@given(st.integers(1, MAX_DURATION_MS))
def test_what_is_written_is_read_back(ms: int) -> None:
    assert parse_duration_ms(format_duration(ms), field="x") == ms


@given(st.text(alphabet="0123456789.dhms -e", max_size=45))
def test_any_text_gives_milliseconds_in_range_or_is_refused(text: str) -> None:
    try:
        ms = parse_duration_ms(text, field="x")
    except InvalidInput:
        return
    assert 1 <= ms <= MAX_DURATION_MS
