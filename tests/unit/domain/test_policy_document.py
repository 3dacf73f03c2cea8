"""The policy's JSON: what is accepted, what is refused and how it is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster.domain.policy import STRATEGIES, Policy, parse_policy, policy_document

FULL = {
    "strategy": "search",
    "weights": {"t": 1.0, "u": 0.0, "b": 0.5},
    "penalty": 3.0,
    "objective": "makespan",
    "bounds": {"B": 0.1, "U": 0.5, "T": 60.0, "J": 1.5},
    "budget": "1s500ms",
    "recovery": {"policy": "fixed", "bounds": {"T": 60.0, "U": 0.5}},
}


def test_a_full_document_comes_back() -> None:
    policy = parse_policy(FULL)
    assert (policy.w_t, policy.w_u, policy.w_b, policy.budget_s) == (1.0, 0.0, 0.5, 1.5)
    assert policy_document(policy) == FULL


def test_what_is_left_out_is_as_in_the_default() -> None:
    default = Policy("best_fit", w_t=0.2, bounds={"B": 0.3}, budget_s=2.0)
    assert parse_policy({}) == Policy()
    assert parse_policy({}, default) == default
    changed = parse_policy({"weights": {"b": 2}, "bounds": {}}, default)
    assert changed == Policy("best_fit", w_t=0.0, w_u=0.0, w_b=2.0, budget_s=2.0)


@pytest.mark.parametrize(
    ("wrong", "field", "limit"),
    [
        ([], "policy", "must be an object"),
        ({"strateg": "search"}, "strateg", "policy knows strategy, weights, penalty"),
        ({"measured": True}, "measured", "policy knows strategy, weights, penalty"),
        ({"strategy": "fastest"}, "strategy", "must be one of annealing, auto, best_fit"),
        ({"strategy": ["search"]}, "strategy", "must be one of annealing"),
        ({"weights": 1}, "weights", "must be an object"),
        ({"weights": {"x": 1}}, "weights.x", "weights knows t, u, b only"),
        ({"weights": {}}, "weights", "at least one must be above 0"),
        ({"weights": {"t": 0, "u": 0, "b": 0}}, "weights", "at least one must be above 0"),
        ({"weights": {"t": -0.1}}, "weights.t", "must be a number from 0 to 1e+09"),
        ({"weights": {"u": math.nan}}, "weights.u", "must be a number from 0 to 1e+09"),
        ({"weights": {"b": 10**400}}, "weights.b", "must be a number from 0 to 1e+09"),
        ({"weights": {"b": True}}, "weights.b", "must be a number from 0 to 1e+09"),
        ({"weights": {"b": None}}, "weights.b", "must be a number from 0 to 1e+09"),
        ({"penalty": "10"}, "penalty", "must be a number from 0 to 1e+09"),
        ({"objective": "cost"}, "objective", "must be one of J, T, makespan"),
        ({"bounds": None}, "bounds", "must be an object"),
        ({"bounds": {"L": 1}}, "bounds.L", "bounds knows T, U, B, J only"),
        ({"bounds": {"U": 1.5}}, "bounds.U", "must be a number from 0 to 1"),
        ({"bounds": {"T": math.inf}}, "bounds.T", "must be a number from 0 up"),
        ({"bounds": {"J": 0.1}}, "bounds.J", "contradicts weights.t, 0.4"),
        ({"budget": "0s"}, "budget", "must be from 1ms to 1h"),
        ({"budget": "365d"}, "budget", "must be from 1ms to 1h"),
        ({"budget": "soon"}, "budget", "must be a duration such as"),
        ({"budget": 5}, "budget", "must be a duration such as 100ms or 2s"),
    ],
)
def test_what_means_nothing_is_refused(wrong: Any, field: str, limit: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_policy(wrong)
    assert caught.value.field == field
    assert caught.value.limit.startswith(limit)
    assert "\n" not in str(caught.value)


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_numbers = st.floats(0, 2) | _scalars
_documents = _json | st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.sampled_from(STRATEGIES) | _json,
        "weights": st.dictionaries(st.sampled_from("tubx"), _numbers) | _json,
        "penalty": _numbers,
        "objective": st.sampled_from(["J", "T", "makespan"]) | _json,
        "bounds": st.dictionaries(st.sampled_from("TUBJ"), _numbers) | _json,
        "budget": st.sampled_from(["100ms", "1h", "2h", "0.5ms"]) | _json,
    },
)


@given(_documents)
def test_any_json_is_a_policy_or_names_the_field_at_fault(document: Any) -> None:
    try:
        policy = parse_policy(document)
    except InvalidInput as error:
        at_fault = error.field
    else:
        assert parse_policy(policy_document(policy)) == policy
        return
    if at_fault != "policy":
        assert at_fault in document or at_fault.split(".")[0] in document
    assert at_fault == "policy" or isinstance(document, dict)
