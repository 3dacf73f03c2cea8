"""Plans in a process of their own: as the strategy plans here, with reasons, and within bounds."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from muster.api.v1 import scheduler_pb2, task_pb2
from muster.domain.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from muster.domain.policy import Policy
from muster.domain.resources import ResourceVector
from muster.domain.task import MAX_FRONT_TASKS, MAX_PLAN_TASKS
from muster_scheduler import planning
from muster_scheduler.core.state import ClusterState
from muster_scheduler.learning.attempts import AgentFeatures, TaskFeatures
from muster_scheduler.placement import strategy as strategies
from muster_scheduler.placement.snapshot import AgentTable
from muster_scheduler.placement.snapshot_bytes import from_bytes, to_bytes
from muster_scheduler.planning import Planner, batch_of, predicted_run_s


def table(agents: int = 3, **more: int) -> AgentTable:
    """Agents of 4, 5, 6 … cpu; every second one with the skill `vision` too."""
    built = AgentTable()
    for n in range(agents):
        amounts = {"cpu": 4_000 + 1_000 * n, "memory": 1 << 30, "slots": 8, **more}
        skills = frozenset(("echo", "vision") if n % 2 else ("echo",))
        labels = {"zone": "ab"[n % 2]}
        built.upsert(f"agent-{n}", ResourceVector.of(amounts), skills, labels, placeable=True)
    return built


def shape(skill: str = "echo", **fields: Any) -> task_pb2.TaskSpec:
    return task_pb2.TaskSpec(
        version=task_pb2.SCHEMA_VERSION_1,
        tenant="t",
        skill=skill,
        **{
            "resources": {"cpu": 1_000},
            "priority": 50,
            "on_disconnect": task_pb2.ON_DISCONNECT_KEEP,
            "lifetime": task_pb2.LIFETIME_FINITE,
            **fields,
        },
    )


def request(
    *shapes: task_pb2.TaskSpec, of: list[int] | None = None, policy: Any = None, **fields: Any
) -> scheduler_pb2.PlanRequest:
    return scheduler_pb2.PlanRequest(
        shapes=shapes,
        shape_of=list(range(len(shapes))) if of is None else of,
        policy_json=msgspec.json.encode(policy or {}),
        **fields,
    )


async def plan(
    asked: scheduler_pb2.PlanRequest, agents: AgentTable | None = None
) -> scheduler_pb2.PlanResponse:
    view = (table() if agents is None else agents).view()
    return await Planner().plan(view, asked, Policy(), 0.0, None)


def agents_of(answer: scheduler_pb2.PlanResponse) -> list[str]:
    return [answer.agents[place - 1] if place else "" for place in answer.places]


def test_a_snapshot_survives_the_way() -> None:
    agents = table(5, gpu=2_000)
    agents.remove("agent-2")
    row = agents.row_of("agent-1")
    demand = agents.demand_row(ResourceVector.of({"cpu": 1_500, "gpu": 500}))
    agents.take(row, demand, {"gpu": (1,)})
    agents.join(row, ("t", "app", "x"))
    agents.set_placeable("agent-3", placeable=False)
    agents.set_health("agent-4", 0.5)
    there = agents.view().freeze()
    here = from_bytes(to_bytes(agents.view()))
    for name in ("capacity", "used", "free", "divisor", "alive", "placeable", "health"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
        assert getattr(here, name).dtype == getattr(there, name).dtype
    for name in ("names", "columns", "agent_ids", "skills", "why_not", "rows", "crowds"):
        assert getattr(here, name) == getattr(there, name)
    assert [dict(one) for one in here.labels] == [dict(one) for one in there.labels]
    assert here.device_free.keys() == there.device_free.keys()
    for column, free in there.device_free.items():
        np.testing.assert_array_equal(here.device_free[column], free)


async def test_a_plan_is_what_the_strategy_makes_here_and_changes_nothing() -> None:
    agents = table()
    view = agents.view()
    used = view.used.copy()
    wide = shape(resources={"cpu": 5_500}, priority=9, estimate_ms=2_000)
    asked = request(
        shape(), wide, shape("nobody"), of=[0, 1, 0, 2, 1], policy={"strategy": "greedy"}
    )
    answer = await plan(asked, agents)
    policy = Policy(strategy="greedy", measured=True)
    rng = np.random.default_rng(0)
    here = strategies.get("greedy").plan(view, batch_of(asked), policy, 0.0, rng, lambda: False, 0)
    names = [view.agent_ids[row] if row >= 0 else "" for row in here.assignment.tolist()]
    assert agents_of(answer) == names == ["agent-0", "agent-2", "agent-0", "", ""]
    score = answer.score
    assert (score.t, score.u, score.b, score.j) == (here.T, here.U, here.B, here.J)
    assert (score.unplaced, answer.strategy) == (2, "greedy")
    reasons = [answer.reasons[of - 1] if of else None for of in answer.reason_of]
    assert reasons[:3] == [None] * 3
    nobody, second = reasons[3], reasons[4]
    assert nobody is not None
    assert second is not None
    assert (dict(nobody.excluded), nobody.agents) == ({"skill": 3}, 3)
    assert second.text.startswith("0 of 3 agents fit (cpu short by")
    np.testing.assert_array_equal(agents.view().used, used)


async def test_improving_is_never_worse_and_equal_for_a_seed_and_steps() -> None:
    shapes = [shape(resources={"cpu": 700 + 130 * n}, estimate_ms=500 * n + 1) for n in range(6)]
    of = [n % 6 for n in range(12)]
    start = await plan(request(*shapes, of=of, policy={"strategy": "worst_fit"}))
    improved = {"strategy": "annealing", "budget": "60s"}
    first, second = await asyncio.gather(
        *(plan(request(*shapes, of=of, policy=improved, seed=7, max_steps=20)) for _ in range(2))
    )
    assert first.places == second.places
    assert first.score.unplaced <= start.score.unplaced
    assert first.score.j <= start.score.j
    assert first.seed == 7


async def test_a_front_trades_t_for_b() -> None:
    shapes = [shape(estimate_ms=1_000 * n + 1_000) for n in range(4)]
    asked = request(*shapes, front=True, max_steps=40, policy={"budget": "60s"})
    answer = await plan(asked)
    assert answer.front
    times = [point.score.t for point in answer.front]
    spreads = [point.score.b for point in answer.front]
    assert times == sorted(times)
    assert spreads == sorted(spreads, reverse=True)
    for point in answer.front:
        assert len(point.places) == 4
        assert max(point.places) <= len(answer.agents)


async def test_predicted_run_times_are_planned_by() -> None:
    """The roomiest agent is slow: who weighs T leaves it, and the front has both ends."""
    agents = table(2)
    run_s = np.array([[1.0, 4.0], [2.0, 8.0]])
    asked = request(
        *(shape(estimate_ms=9_000), shape(resources={"cpu": 500})),
        of=[0, 0, 1, 1],
        policy={"strategy": "annealing", "weights": {"t": 1}, "budget": "60s"},
        max_steps=30,
        front=True,
    )
    answer = await Planner().plan(agents.view(), asked, Policy(), 0.0, None, run_s)
    assert answer.learned
    assert agents_of(answer) == ["agent-0"] * 4
    assert answer.score.t == 2 * (1.0 + 2.0)
    assert len(answer.front) > 1
    assert answer.front[0].score.t == 6.0
    assert answer.front[-1].score.b < answer.front[0].score.b
    assert not (await plan(asked, agents)).learned


def test_nothing_is_predicted_before_anything_was_learned_or_of_too_many_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = ClusterState(Policy(), np.random.default_rng(1), lambda: 0.5)
    view, asked = table().view(), request(shape(), shape("vision", estimate_ms=2_000))
    assert predicted_run_s(state, view, asked) is None
    state.foresight = _Foresight()  # type: ignore[assignment]
    np.testing.assert_array_equal(
        predicted_run_s(state, view, asked), [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    )
    monkeypatch.setattr(planning, "_MOST_PAIRS", 5)
    assert predicted_run_s(state, view, asked) is None


class _Foresight:
    """Predicts what is declared, or a second."""

    model = object()

    def set_agents(self, agents: Sequence[AgentFeatures]) -> None:
        self.count = len(agents)

    def response_s(self, tasks: Sequence[TaskFeatures], load: Any) -> Any:
        assert len(load) == self.count
        return np.array([[task.declared_s or 1.0] * self.count for task in tasks])


async def test_devices_are_named() -> None:
    two = shape(resources={"gpu": 2_000})
    answer = await plan(request(two, shape(resources={"gpu": 500})), table(1, gpu=3_000))
    named = {(one.task, one.resource): list(one.indices) for one in answer.devices}
    assert named == {(0, "gpu"): [0, 1], (1, "gpu"): [2]}


async def test_a_cluster_without_agents() -> None:
    answer = await plan(request(shape(), shape(), of=[0, 1, 0]), AgentTable())
    assert list(answer.places) == [0, 0, 0]
    assert [reason.text for reason in answer.reasons] == ["there is no agent"]
    assert list(answer.reason_of) == [1, 1, 1]
    assert answer.score.unplaced == 3


async def test_agents_with_nothing_of_a_resource() -> None:
    answer = await plan(request(shape(resources={"gpu": 500}), shape(resources={"gpu": 0})))
    assert agents_of(answer)[0] == ""
    assert agents_of(answer)[1]
    assert "even when empty" in answer.reasons[0].text


@pytest.mark.parametrize(
    ("asked", "field", "limit"),
    [
        (request(), "tasks", f"1 to {MAX_PLAN_TASKS} tasks"),
        (request(shape(), of=[0] * 200_000), "tasks", f"1 to {MAX_PLAN_TASKS} tasks"),
        (request(shape(), of=[0] * (MAX_FRONT_TASKS + 1), front=True), "front", "10000 tasks"),
        (request(shape(), policy={"strategy": "best"}), "strategy", "worst_fit"),
        (request(shape(), policy={"weights": {"t": -1}}), "weights.t", "from 0"),
        (request(shape(), policy={"budget": "365d"}), "budget", "1h"),
        (request(shape(), of=[1]), "shape_of", "1 shapes"),
        (request(shape(lifetime=77)), "shapes[0].lifetime", "knows"),
    ],
)
async def test_what_is_refused(asked: scheduler_pb2.PlanRequest, field: str, limit: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await plan(asked)
    assert refused.value.field == field
    assert limit in str(refused.value)


async def test_only_so_many_at_once() -> None:
    planner, view = Planner(), table().view()

    async def one() -> str:
        try:
            await planner.plan(view, request(shape()), Policy(), 0.0, None)
        except Overloaded as error:
            return str(error)
        return ""

    said = await asyncio.gather(*(one() for _ in range(planning.MAX_PLANS + 1)))
    assert sorted(said) == ["", "", "2 plans are being made already"]
    assert await one() == ""


async def test_the_rpcs_deadline_bounds_it() -> None:
    view = table().view()
    with pytest.raises(DeadlineExceeded):
        await Planner().plan(view, request(shape()), Policy(), 0.0, 0.5)
    answer = await Planner().plan(view, request(shape()), Policy(), 0.0, 6.0)
    assert answer.budget_s <= 4.0


async def test_a_process_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="exit code 1"):
        await plan(request(shape()))
