"""The depth of JSON texts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_gateway.json_bounds import json_depth

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab[]{}"\\,:/é\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet='k[]{}"\\', max_size=4), inner, max_size=4)
    ),
    max_leaves=30,
)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(v) for v in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(v) for v in value), default=0)
    return 0


@given(_JSON, st.booleans())
def test_the_depth_is_that_of_the_decoded_value(value: Any, escape: bool) -> None:
    assert json_depth(json.dumps(value, ensure_ascii=escape).encode()) == _depth(value)


@pytest.mark.parametrize("levels", [1, 64, 1_000, 100_000])
def test_depth_has_no_limit_of_its_own(levels: int) -> None:
    assert json_depth(b"[" * levels + b"]" * levels) == levels
    assert json_depth(b'{"a":' * levels + b"1" + b"}" * levels) == levels


def test_several_documents_give_the_deepest() -> None:
    assert json_depth(b'{"a":1}\n{"a":[[1]]}\n{}') == 3


@given(st.binary(max_size=300))
def test_any_bytes_are_measured(text: bytes) -> None:
    assert json_depth(text) <= len(text)


def test_a_large_text_is_measured_in_linear_time() -> None:
    assert json_depth(b"[" + b"[]," * 500_000 + b"[]]") == 2
    assert json_depth(b"[" + b'"\\\\\\"[",' * 200_000 + b"1]") == 1
