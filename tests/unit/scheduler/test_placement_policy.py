"""What a policy may ask for, and the sentence that answers what it may not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from muster.domain.errors import InvalidInput
from muster_scheduler.placement import Policy

NUMBER = "must be a number from 0 to 1e+09"
BUDGET = "must be a number from 0 to 3600"


@pytest.mark.parametrize(
    ("wrong", "field", "limit"),
    [
        ({"w_t": -0.1}, "policy.w_t", NUMBER),
        ({"w_u": -math.inf}, "policy.w_u", NUMBER),
        ({"w_b": math.nan}, "policy.w_b", NUMBER),
        ({"w_b": 1e10}, "policy.w_b", NUMBER),
        ({"w_b": "much"}, "policy.w_b", NUMBER),
        ({"w_b": True}, "policy.w_b", NUMBER),
        ({"w_b": None}, "policy.w_b", NUMBER),
        ({"penalty": math.inf}, "policy.penalty", NUMBER),
        ({"penalty": -1}, "policy.penalty", NUMBER),
        (
            {"w_t": 0.0, "w_u": 0.0, "w_b": 0.0},
            "policy",
            "at least one of w_t, w_u, w_b must be above 0",
        ),
        ({"objective": "cost"}, "policy.objective", "one of J T makespan"),
        ({"bounds": {"X": 1.0}}, "policy.bounds.X", "bounds are for T, U, B and J"),
        ({"bounds": {"B": math.nan}}, "policy.bounds.B", "must be a number from 0 up"),
        ({"bounds": {"B": -0.1}}, "policy.bounds.B", "must be a number from 0 up"),
        ({"bounds": {"T": math.inf}}, "policy.bounds.T", "must be a number from 0 up"),
        ({"bounds": {"U": 1.01}}, "policy.bounds.U", "must be a number from 0 to 1"),
        (
            {"bounds": {"J": 0.3}},
            "policy.bounds.J",
            "contradicts w_t, 0.4: J is at least that while every task is placed",
        ),
        ({"budget_s": 0}, "policy.budget_s", "must be above 0 and at most 3600 seconds"),
        ({"budget_s": -1.0}, "policy.budget_s", BUDGET),
        ({"budget_s": 365 * 86_400}, "policy.budget_s", BUDGET),
        ({"budget_s": math.nan}, "policy.budget_s", BUDGET),
    ],
)
def test_a_policy_that_means_nothing_is_refused(
    wrong: dict[str, Any], field: str, limit: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        Policy(**wrong)
    assert (caught.value.field, caught.value.limit) == (field, limit)


def test_the_limits_themselves_are_accepted() -> None:
    Policy(w_t=0, w_u=0, w_b=1e9, penalty=0, budget_s=3600, objective="makespan")
    Policy(bounds={"T": 0, "U": 1.0, "B": 0.0, "J": 0.4}, budget_s=0.001)
