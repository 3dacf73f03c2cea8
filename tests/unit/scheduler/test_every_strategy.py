"""What every strategy promises, whoever wrote it: each registered name is put to the same tests.

A new strategy joins by registering; an improving one by being an `ImprovingStrategy` or by having
its name in IMPROVING. What one promises besides belongs to tests of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muster.domain.policy import DEFAULT_BUDGET_S
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Plan,
    Policy,
    Snapshot,
    TaskBatch,
    TaskClass,
    evaluate,
    get,
    names,
)
from muster_scheduler.placement.classes import Spread
from muster_scheduler.placement.improvement import STARTS, ImprovingStrategy

IMPROVING = tuple(
    name
    for name in names()
    if isinstance(get(name), ImprovingStrategy) or name in ("exact", "search")
)
# Enough to see each do something, few enough that all of them together take seconds.
STEPS = 2
every_strategy = pytest.mark.parametrize("strategy", names())
improving_strategy = pytest.mark.parametrize("strategy", IMPROVING)
few_examples = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
fewer_examples = settings(few_examples, max_examples=4)
# What is compiled for one of them serves the others.
pytestmark = pytest.mark.xdist_group("kernels")


@dataclass
class Cluster:
    table: AgentTable = field(default_factory=AgentTable)
    classes: ClassTable = field(default_factory=ClassTable)

    def add(self, capacity: Mapping[str, int], **more: Any) -> int:
        """An agent that offers `echo`; `more` as `AgentTable.upsert` has it."""
        known: dict[str, Any] = {"skills": frozenset({"echo"}), "labels": {}, "placeable": True}
        return self.table.upsert(
            f"a{len(self.table)}", ResourceVector.of(capacity), **{**known, **more}
        )

    def task(self, demand: Mapping[str, int], *constraints: Constraint, **more: Any) -> int:
        vector = ResourceVector.of(demand)
        return self.classes.intern(TaskClass("echo", vector, constraints, **more))

    def plan(
        self,
        strategy: str,
        tasks: TaskBatch | list[int],
        policy: Policy | None = None,
        seed: int = 1,
        stop: Callable[[], bool] = lambda: False,
        max_steps: int = STEPS,
    ) -> Plan:
        batch = TaskBatch.of(self.classes, tasks) if isinstance(tasks, list) else tasks
        rng = np.random.default_rng(seed)
        view = self.table.view()
        # CP-SAT must be ended by its own count of work: the clock would end it somewhere else.
        budget_s = 600.0 if strategy == "exact" else DEFAULT_BUDGET_S
        chosen = policy or Policy(strategy=strategy, budget_s=budget_s)
        return get(strategy).plan(view, batch, chosen, 0.0, rng, stop, max_steps)


def random_cluster(seed: int, agents: int, kinds: int, count: int) -> tuple[Cluster, TaskBatch]:
    """All that makes an agent unfit for a task, in one small cluster; some have devices."""
    rng = np.random.default_rng(seed)
    cluster = Cluster()
    for _ in range(agents):
        capacity = {
            "cpu": int(rng.integers(0, 9)) * 1000,
            "memory": int(rng.integers(0, 9)) << 30,
            "slots": int(rng.integers(0, 9)),
            "gpu": int(rng.choice([0, 0, 1000, 2000])),
        }
        row = cluster.add(
            capacity,
            skills=frozenset({"echo"} if rng.random() < 0.9 else {"other"}),
            labels={"zone": str(rng.integers(0, 2))},
            placeable=bool(rng.random() < 0.9),
            health=float(rng.choice([1.0, 0.6])),
        )
        held = ResourceVector.of({"cpu": capacity["cpu"] // 4, "gpu": capacity["gpu"] // 4})
        demand = cluster.table.demand_row(held)
        cluster.table.take(row, demand, cluster.table.devices_for(row, demand))
    ids = []
    for _ in range(kinds):
        demand_of_kind = {
            "cpu": int(rng.integers(0, 4)) * 500,
            "memory": int(rng.integers(0, 3)) << 28,
            "slots": int(rng.integers(0, 2)),
            "gpu": int(rng.choice([0, 0, 0, 300, 1000, 2000])),
        }
        constraints = (Constraint("zone", "==", ("1",)),) if rng.random() < 0.3 else ()
        avoid = frozenset({"a0", "gone"} if rng.random() < 0.2 else ())
        ids.append(cluster.task(demand_of_kind, *constraints, avoid=avoid))
    batch = TaskBatch.of(
        cluster.classes,
        [ids[k] for k in rng.integers(0, kinds, count).tolist()],
        rng.integers(0, 101, count).tolist(),
        rng.uniform(0.1, 50.0, count).tolist(),
    )
    if rng.random() < 0.5:
        times = rng.uniform(0.1, 50.0, (count, cluster.table.view().row_count))
        batch = replace(batch, response_s=times)
    return cluster, batch


def check_feasible(snapshot: Snapshot, tasks: TaskBatch, plan: Plan) -> None:
    """Whoever got a place may have it, and no agent that got something holds more than it has."""
    free = snapshot.free.copy()
    devices = {k: grid.copy() for k, grid in snapshot.device_free.items()}
    assert plan.assignment.dtype == np.int32
    assert plan.assignment.shape == (len(tasks),)
    for index, row in enumerate(plan.assignment.tolist()):
        if row < 0:
            assert row == -1
            assert index not in plan.devices
            continue
        class_id = int(tasks.class_id[index])
        assert tasks.classes.eligible(class_id, snapshot)[row], "an agent that may not have it"
        demand = tasks.classes.demand(class_id, snapshot)
        assert not demand.missing
        if tasks.demand_by_agent is not None:
            wanted = list(enumerate(tasks.demand_by_agent[index, row].tolist()))
        else:
            wanted = list(demand.columns)
        for column, amount in wanted:
            free[row, column] -= amount
            assert amount == 0 or free[row, column] >= 0, "more than the agent has"
        if tasks.demand_by_agent is None:
            for column in (k for k, _ in demand.columns if k in devices):
                amount = demand.amounts[column]
                given = plan.devices[index][snapshot.names[column]]
                assert len(set(given)) == len(given) == -(-amount // 1000)
                devices[column][row, list(given)] -= min(amount, 1000)
                assert (devices[column][row] >= 0).all(), "more than the device has"


@every_strategy
@few_examples
@given(
    seed=st.integers(0, 2**32 - 1),
    agents=st.sampled_from([1, 3, 30]),
    kinds=st.sampled_from([1, 4, 20]),
    count=st.sampled_from([1, 12, 70]),
)
def test_plans_are_feasible_repeatable_and_change_nothing(
    strategy: str, seed: int, agents: int, kinds: int, count: int
) -> None:
    cluster, batch = random_cluster(seed, agents, kinds, count)
    view = cluster.table.view()
    before = view.used.copy(), view.free.copy(), {k: g.copy() for k, g in view.device_free.items()}
    plan = cluster.plan(strategy, batch, seed=seed)
    check_feasible(view, batch, plan)
    again = cluster.plan(strategy, batch, seed=seed)
    assert again.assignment.tolist() == plan.assignment.tolist()
    assert {i: dict(d) for i, d in again.devices.items()} == {
        i: dict(d) for i, d in plan.devices.items()
    }
    assert plan.strategy
    assert (view.used == before[0]).all()
    assert (view.free == before[1]).all()
    assert all((view.device_free[k] == grid).all() for k, grid in before[2].items())
    for index in np.flatnonzero(plan.assignment[: plan.considered] < 0).tolist():
        assert str(plan.reasons[index]), "an unplaced task without a reason"


@every_strategy
@fewer_examples
@given(seed=st.integers(0, 2**32 - 1), agents=st.sampled_from([1, 5]), room=st.floats(0.1, 2.0))
def test_demands_that_differ_by_agent_stay_within_capacity(
    strategy: str, seed: int, agents: int, room: float
) -> None:
    rng = np.random.default_rng(seed)
    cluster, count = Cluster(), 20
    for _ in range(agents):
        cluster.add({"cpu": int(room * 50 * count / agents)})
    demand = np.zeros((count, agents, 4), np.int64)
    demand[:, :, 0] = rng.integers(1, 101, (count, agents))
    batch = replace(
        TaskBatch.of(cluster.classes, [cluster.task({})] * count),
        response_s=rng.uniform(1, 100, (count, agents)),
        demand_by_agent=demand,
    )
    plan = cluster.plan(strategy, batch, Policy(strategy=strategy, objective="T"))
    check_feasible(cluster.table.view(), batch, plan)


@improving_strategy
@pytest.mark.parametrize("objective", ["J", "T", "makespan"])
@fewer_examples
@given(seed=st.integers(0, 2**32 - 1), agents=st.sampled_from([2, 9]))
def test_improving_is_never_worse_than_any_start(
    strategy: str, objective: Any, seed: int, agents: int
) -> None:
    cluster, batch = random_cluster(seed, agents, 6, 30)
    view = cluster.table.view()
    policy = Policy(strategy=strategy, objective=objective)
    starts = sorted(set(STARTS) & set(names()))
    begun = [cluster.plan(start, batch, policy).assignment for start in starts]
    least = min(evaluate(view, batch, start, policy).order(policy) for start in begun)
    for steps in (0, STEPS):
        plan = cluster.plan(strategy, batch, policy, max_steps=steps)
        assert evaluate(view, batch, plan.assignment, policy).order(policy) <= least, steps


@improving_strategy
def test_improving_ends_soon_after_it_is_told_to_stop(strategy: str) -> None:
    """By questions, not by the clock: it may ask so often that it would ask in a millisecond."""
    cluster, batch = random_cluster(3, 20, 8, 60)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    plan = cluster.plan(strategy, batch, stop=stop, max_steps=10**9)
    check_feasible(cluster.table.view(), batch, plan)
    assert asked < 50, "it went on asking after it was told to stop"


@every_strategy
def test_an_empty_cluster_places_nothing(strategy: str) -> None:
    cluster = Cluster()
    plan = cluster.plan(strategy, [cluster.task({"cpu": 1})] * 3)
    assert plan.assignment.tolist() == [-1, -1, -1]
    assert str(plan.reasons[2]) == "there is no agent"


@every_strategy
def test_a_cluster_whose_agents_are_all_cordoned_places_nothing(strategy: str) -> None:
    cluster = Cluster()
    cluster.add({"cpu": 1000}, placeable=False)
    plan = cluster.plan(strategy, [cluster.task({"cpu": 1})])
    assert plan.assignment.tolist() == [-1]
    assert plan.reasons[0].reasons == {"cordoned": 1}


@every_strategy
@pytest.mark.parametrize("agents", [0, 3])
def test_an_empty_batch_is_an_empty_plan(strategy: str, agents: int) -> None:
    cluster = Cluster()
    for _ in range(agents):
        cluster.add({"cpu": 1000})
    plan = cluster.plan(strategy, [], Policy(strategy=strategy, measured=True))
    assert plan.assignment.shape == (0,)
    assert not plan.reasons
    assert plan.T == 0.0


@every_strategy
def test_agents_with_none_of_a_resource_get_no_task_that_wants_it(strategy: str) -> None:
    cluster = Cluster()
    for _ in range(3):
        cluster.add({"cpu": 4000, "slots": 9})
    row = cluster.add({"cpu": 4000, "slots": 9, "gpu": 1000})
    tasks = [cluster.task({"gpu": 500, "slots": 1})] * 3 + [cluster.task({"cpu": 1, "slots": 1})]
    plan = cluster.plan(strategy, tasks)
    check_feasible(cluster.table.view(), TaskBatch.of(cluster.classes, tasks), plan)
    on_devices = sorted(plan.assignment[:3].tolist())
    assert on_devices == [-1, row, row]
    assert plan.assignment[3] >= 0


@every_strategy
@pytest.mark.parametrize("agents", [3, 30])
def test_what_is_free_on_several_devices_together_is_no_device(strategy: str, agents: int) -> None:
    cluster = Cluster()
    used = cluster.table.demand_row(ResourceVector.of({"gpu": 400}))
    for _ in range(agents):
        row = cluster.add({"cpu": 4000, "slots": 9, "gpu": 2000})
        for device in (0, 1):
            cluster.table.take(row, used, {"gpu": (device,)})
    tasks = [cluster.task({"gpu": amount, "slots": 1}) for amount in (1000, 601, 600, 600)]
    plan = cluster.plan(strategy, tasks)
    check_feasible(cluster.table.view(), TaskBatch.of(cluster.classes, tasks), plan)
    assert (plan.assignment >= 0).tolist() == [False, False, True, True]


@every_strategy
@pytest.mark.parametrize("predicted", [False, True])
def test_agents_hold_no_more_of_a_group_than_they_may(strategy: str, predicted: bool) -> None:
    cluster, group = Cluster(), ("t", "app", "web")
    for _ in range(5):
        cluster.add({"cpu": 64_000, "slots": 64})
    cluster.table.join(0, group)
    web = cluster.task({"cpu": 100, "slots": 1}, spread=(Spread(group, 2),))
    tasks = TaskBatch.of(cluster.classes, [web] * 20 + [cluster.task({"cpu": 100})] * 10)
    if predicted:
        times = np.random.default_rng(2).uniform(1, 9, (len(tasks), 5))
        tasks = replace(tasks, response_s=times)
    plan = cluster.plan(strategy, tasks)
    placed = plan.assignment[:20]
    assert np.bincount(placed[placed >= 0], minlength=5).tolist() == [1, 2, 2, 2, 2]
    assert (plan.assignment[20:] >= 0).all()
    unplaced = int(np.flatnonzero(placed < 0)[0])
    assert "app max 2" in str(plan.reasons[unplaced]) or "taken by tasks before" in str(
        plan.reasons[unplaced]
    )


@every_strategy
@pytest.mark.parametrize("demand", [{"cpu": 4001}, {"tpu": 1}, {"cpu": 1, "memory": 2**50}])
def test_demands_beyond_every_agent_are_refused_and_hinder_nobody(
    strategy: str, demand: Mapping[str, int]
) -> None:
    cluster = Cluster()
    for _ in range(3):
        cluster.add({"cpu": 4000, "memory": 2**30, "slots": 9})
    tasks = [cluster.task(demand), cluster.task({"cpu": 1}), cluster.task(demand)]
    plan = cluster.plan(strategy, tasks)
    assert (plan.assignment >= 0).tolist() == [False, True, False]
    assert "even when empty" in str(plan.reasons[0])


@every_strategy
def test_agents_that_hold_more_than_they_have_get_nothing(strategy: str) -> None:
    cluster = Cluster()
    for _ in range(2):
        cluster.add({"cpu": 1000, "slots": 2})
    cluster.table.take(0, cluster.table.demand_row(ResourceVector.of({"cpu": 1500})))
    plan = cluster.plan(strategy, [cluster.task({"cpu": 500, "slots": 1})] * 3)
    assert sorted(plan.assignment.tolist()) == [-1, 1, 1]


@every_strategy
def test_empty_rows_between_agents_are_no_agents(strategy: str) -> None:
    cluster = Cluster()
    for _ in range(4):
        cluster.add({"cpu": 1000, "slots": 1})
    cluster.table.remove("a1")
    plan = cluster.plan(strategy, [cluster.task({"slots": 1})] * 4 + [cluster.task({})])
    assert sorted(plan.assignment[:4].tolist()) == [-1, 0, 2, 3]
    assert plan.assignment[4] in (0, 2, 3)


@every_strategy
def test_a_plan_is_measured_when_the_policy_asks(strategy: str) -> None:
    cluster, batch = random_cluster(11, 6, 4, 20)
    policy = Policy(strategy=strategy, measured=True)
    plan = cluster.plan(strategy, batch, policy)
    score = evaluate(cluster.table.view(), batch, plan.assignment, policy)
    assert pytest.approx((score.T, score.U, score.B, score.J)) == (plan.T, plan.U, plan.B, plan.J)


@every_strategy
def test_a_large_batch_is_planned_as_well(strategy: str) -> None:
    """Beyond the sizes at which other loops take over."""
    cluster = Cluster()
    for index in range(70):
        cluster.add({"cpu": 1000 * (1 + index % 7), "slots": 64})
    tasks = [cluster.task({"cpu": 100 + 7 * k, "slots": 1}) for k in range(5)] * 60
    batch = TaskBatch.of(cluster.classes, tasks)
    plan = cluster.plan(strategy, batch, max_steps=1)
    check_feasible(cluster.table.view(), batch, plan)
    assert (plan.assignment >= 0).all()


def test_greedy_is_the_reference() -> None:
    """The article's choice; `test_placement_greedy_reference.py` holds it in full."""
    cluster = Cluster()
    for cpu in (3000, 1000, 2000, 1000):
        cluster.add({"cpu": cpu})
    tasks = [cluster.task({"cpu": c}) for c in (600, 600, 600, 1400, 300)]
    assert cluster.plan("greedy", tasks).assignment.tolist() == [1, 3, 2, 2, 1]


def test_the_strategies_of_the_table_are_known() -> None:
    table = """worst_fit greedy first_fit best_fit dot_product fragmentation quota annealing genetic
    swarm search exact learned auto"""
    assert set(table.split()) <= set(names())
    assert {"annealing", "genetic", "swarm", "search", "exact"} <= set(IMPROVING)
