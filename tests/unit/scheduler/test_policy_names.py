"""The strategies that a policy may name are those that there are."""

from __future__ import annotations

from muster.domain.policy import STRATEGIES
from muster_scheduler import placement


def test_every_registered_strategy_may_be_named_and_no_other() -> None:
    assert placement.names() == STRATEGIES
