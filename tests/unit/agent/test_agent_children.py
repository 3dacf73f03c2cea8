"""Tasks that skills submit, and which monitor an agent prefers."""

from __future__ import annotations

from typing import Any

import pytest

from muster.agent.data_calls import child_spec
from muster.agent.events import AttemptKey, AttemptSpec
from muster.agent.reporting import preferred_monitor
from muster.domain.errors import InvalidInput
from muster.domain.ids import DEFAULT_TENANT, AgentId, parse_task_id, request_prefix, task_id
from muster.domain.task import (
    MAX_CHILDREN,
    MAX_DEPTH,
    MAX_INPUT_BYTES,
    OnDisconnect,
    TaskSpec,
)

PARENT_ID = task_id(request_prefix(DEFAULT_TENANT, "k", 1_700_000_000_000), 0)


def parent(attempt: int = 1, depth: int = 0) -> AttemptSpec:
    key = AttemptKey(PARENT_ID, attempt)
    return AttemptSpec(key, DEFAULT_TENANT, "p", b"", 1, timeout_ms=9_000, priority=70, depth=depth)


def child(index: int = 0, **options: Any) -> TaskSpec:
    return child_spec(parent(), index, "echo", b"1", options)


def test_a_childs_id_follows_from_its_parent_and_the_call() -> None:
    assert parse_task_id(child(0).id) == child(0).id
    assert child(0).id == child_spec(parent(attempt=3), 0, "other", b"2", {}).id
    assert child(0).id != child(1).id


def test_deadline_priority_and_depth_are_inherited() -> None:
    made = child()
    assert (made.parent, made.depth, made.priority) == (PARENT_ID, 1, 70)
    assert (made.total_deadline_ms, made.timeout_ms) == (9_000, 0)
    assert made.resources.get("cpu") == 100


def test_options_are_taken() -> None:
    made = child(
        timeout_s=1.5,
        priority=3,
        max_attempts=1,
        resources={"cpu": "2"},
        labels={"a": "b"},
        on_disconnect="stop",
    )
    assert (made.timeout_ms, made.priority, made.max_attempts) == (1500, 3, 1)
    assert made.resources.get("cpu") == 2000
    assert made.labels == (("a", "b"),)
    assert made.on_disconnect is OnDisconnect.STOP


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"timeout_s": -1}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"priority": 101}, "priority"),
        ({"max_attempts": "3"}, "max_attempts"),
        ({"on_disconnect": "maybe"}, "on_disconnect"),
        ({"resources": {"cpu": "x"}}, "resources.cpu"),
        ({"labels": {"A": "b"}}, "labels.A"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        child(**options)
    assert caught.value.field == field


def test_depth_count_and_size_are_bounded() -> None:
    assert child(MAX_CHILDREN - 1).parent == PARENT_ID
    with pytest.raises(InvalidInput) as caught:
        child(MAX_CHILDREN)
    assert str(caught.value) == "children: 10001 is not accepted; a task submits at most 10000"
    with pytest.raises(InvalidInput, match="depth"):
        child_spec(parent(depth=MAX_DEPTH), 0, "echo", b"", {})
    with pytest.raises(InvalidInput, match="at most"):
        child_spec(parent(), 0, "echo", b"x" * (MAX_INPUT_BYTES + 1), {})


def test_agents_spread_over_monitors_and_move_only_when_theirs_fails() -> None:
    monitors = ("m1:1", "m2:1", "m3:1")
    agents = [AgentId(f"a{n}") for n in range(300)]
    first = {a: preferred_monitor(a, monitors, 0) for a in agents}
    assert all(70 < list(first.values()).count(m) < 130 for m in monitors)
    for agent in agents:
        order = [preferred_monitor(agent, monitors, n) for n in range(3)]
        assert sorted(order) == sorted(monitors)
        assert preferred_monitor(agent, monitors, 3) == order[0]
        if first[agent] != "m3:1":
            assert preferred_monitor(agent, monitors[:2], 0) == first[agent]
