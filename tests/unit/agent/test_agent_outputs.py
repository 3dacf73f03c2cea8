"""Results as JSON, errors as text."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
from typing import Any

import numpy
import pydantic
import pytest

from muster.agent.outputs import NotJson, describe_exception, describe_signal, encode_output
from muster.domain.task import MAX_ERROR_CHARS


class Model(pydantic.BaseModel):
    when: datetime.date


@dataclasses.dataclass
class Point:
    x: int


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ((1, "a", 2.5, True), [1, "a", 2.5, True]),
        ({1: "int key"}, {"1": "int key"}),
        ([Model(when=datetime.date(2026, 1, 2))], [{"when": "2026-01-02"}]),
        ({"p": Point(3)}, {"p": {"x": 3}}),
        (Colour.RED, "red"),
        ({3, 1, 2}, [1, 2, 3]),
        (numpy.arange(3), [0, 1, 2]),
        ({"n": numpy.float64(0.5), "i": numpy.int64(4)}, {"n": 0.5, "i": 4}),
        ({"nothing": None, "deep": [[None]]}, {"nothing": None, "deep": [[None]]}),
    ],
)
def test_common_values_become_json(value: Any, expected: Any) -> None:
    assert json.loads(encode_output(value)) == expected


@pytest.mark.parametrize(
    "value",
    [object(), b"bytes", 1 << 70, math.nan, [{"a": (math.inf,)}], lambda: 1, "\ud800", {1j: 2}],
)
def test_what_json_cannot_hold_is_said(value: Any) -> None:
    with pytest.raises(NotJson, match="the result is not JSON"):
        encode_output(value)


def test_a_value_that_holds_itself_is_said() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotJson):
        encode_output(loop)


def test_an_exception_keeps_type_message_and_the_end_of_its_traceback() -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise ValueError("bad thing")

    with pytest.raises(ValueError, match="bad thing") as caught:
        deep(200)
    text = describe_exception(caught.value)
    assert text.startswith("ValueError: bad thing\n")
    assert text.endswith('raise ValueError("bad thing")')
    assert len(text) <= MAX_ERROR_CHARS


def test_an_exception_that_cannot_be_shown_is_shown_all_the_same() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert "its text cannot be made" in describe_exception(Rude())
    assert len(describe_exception(ValueError("x" * 100_000))) <= MAX_ERROR_CHARS


def test_signals_have_names() -> None:
    assert describe_signal(11) == "SIGSEGV"
    assert describe_signal(99) == "signal 99"
