"""What every constructive strategy promises, and each one's choice against a plain full search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Plan,
    Policy,
    TaskBatch,
    TaskClass,
    get,
    names,
)
from muster_scheduler.placement.shares import WELL

CONSTRUCTIVE = ("best_fit", "first_fit", "greedy", "worst_fit")
every_strategy = pytest.mark.parametrize("strategy", CONSTRUCTIVE)


@dataclass
class Cluster:
    """A table with equal agents a0, a1, …, and tasks that want `echo`."""

    agents: int = 0
    capacity: Mapping[str, int] = field(default_factory=lambda: {"cpu": 1000, "slots": 10})
    table: AgentTable = field(default_factory=AgentTable)
    classes: ClassTable = field(default_factory=ClassTable)

    def __post_init__(self) -> None:
        for index in range(self.agents):
            self.add(f"a{index}", self.capacity)

    def add(self, agent_id: str, capacity: Mapping[str, int], health: float = 1.0) -> int:
        vector = ResourceVector.of(capacity)
        return self.table.upsert(
            agent_id, vector, frozenset({"echo"}), {}, placeable=True, health=health
        )

    def task(self, demand: Mapping[str, int], avoid: frozenset[str] = frozenset()) -> int:
        return self.classes.intern(TaskClass("echo", ResourceVector.of(demand), (), avoid))

    def plan(
        self,
        strategy: str,
        tasks: list[int],
        *,
        seed: int = 0,
        stop: Callable[[], bool] = lambda: False,
        policy: Policy | None = None,
    ) -> Plan:
        return get(strategy).plan(
            self.table.view(),
            TaskBatch.of(self.classes, tasks),
            policy or Policy(),
            0.0,
            np.random.default_rng(seed),
            stop,
            0,
        )


def random_cluster(seed: int, agents: int, kinds: int, tasks: int) -> tuple[Cluster, list[int]]:
    """Unequal agents, partly used, sick, cordoned or without the skill; several task classes."""
    rng = np.random.default_rng(seed)
    cluster = Cluster()
    for index in range(agents):
        capacity = {
            "cpu": int(rng.integers(0, 5)) * 1000,
            "memory": int(rng.integers(0, 5)) * 1024,
            "network": int(rng.integers(0, 3)) * 50,
            "slots": int(rng.integers(0, 6)),
            "gpu": int(rng.integers(0, 2)) * 1000,
        }
        row = cluster.table.upsert(
            f"a{index}",
            ResourceVector.of(capacity),
            frozenset({"echo"} if rng.random() < 0.9 else {"other"}),
            {},
            placeable=bool(rng.random() < 0.9),
            health=float(rng.choice([1.0, 0.5, 0.7, 0.0])),
        )
        held = ResourceVector.of({name: amount // 3 for name, amount in capacity.items()})
        cluster.table.take(row, cluster.table.demand_row(held))
    ids = []
    for _ in range(kinds):
        demand = {
            "cpu": int(rng.integers(0, 4)) * 250,
            "memory": int(rng.integers(0, 3)) * 256,
            "network": int(rng.integers(0, 2)),
            "slots": int(rng.integers(0, 2)),
            "gpu": int(rng.random() < 0.2) * 500,
        }
        avoid = frozenset({"a0", "a1", "gone"}) if rng.random() < 0.2 else frozenset[str]()
        ids.append(cluster.task(demand, avoid))
    return cluster, [ids[k] for k in rng.integers(0, kinds, tasks).tolist()]


def full_search(strategy: str, cluster: Cluster, tasks: list[int]) -> list[int]:
    """Look at every agent for every task."""
    view = cluster.table.view()
    free = [[int(x) for x in row] for row in view.free]
    capacity = [[int(x) for x in row] for row in view.capacity]
    placements = []
    for class_id in tasks:
        task = cluster.classes[class_id]
        wanted = [task.demand.get(name) for name in view.names]
        unknown = set(task.demand.names()) - set(view.names)
        best: tuple[tuple[bool, float], int] | None = None
        for row, room in enumerate(free):
            if (
                unknown
                or not view.placeable[row]
                or task.skill not in view.skills[row]
                or view.agent_ids[row] in task.avoid
                or any(have < want for have, want in zip(room, wanted, strict=True))
            ):
                continue
            least = min(
                (
                    (have - want) / total
                    for have, want, total in zip(room, wanted, capacity[row], strict=True)
                    if want
                ),
                default=1.0,
            )
            key = {
                "first_fit": 0.0,
                "best_fit": least,
                "worst_fit": -(least * float(view.health[row])),
                "greedy": float(sum(abs(capacity[row][k] - wanted[k]) for k in range(3))),
            }[strategy]
            # Sick ones after all that are well.
            rank = (strategy != "worst_fit" and bool(view.health[row] < WELL), key)
            if best is None or rank < best[0]:
                best = (rank, row)
        if best is not None:
            free[best[1]] = [a - b for a, b in zip(free[best[1]], wanted, strict=True)]
        placements.append(-1 if best is None else best[1])
    return placements


@every_strategy
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    agents=st.sampled_from([1, 3, 24, 25, 40, 90]),
    kinds=st.sampled_from([1, 2, 5, 60]),
    tasks=st.integers(0, 150),
)
def test_choices_are_those_of_a_full_search(
    strategy: str, seed: int, agents: int, kinds: int, tasks: int
) -> None:
    cluster, batch = random_cluster(seed, agents, kinds, tasks)
    assert cluster.plan(strategy, batch).assignment.tolist() == full_search(
        strategy, cluster, batch
    )


@every_strategy
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), agents=st.sampled_from([2, 40]))
def test_plans_are_feasible_deterministic_and_leave_the_snapshot_alone(
    strategy: str, seed: int, agents: int
) -> None:
    cluster, batch = random_cluster(seed, agents, 6, 120)
    view = cluster.table.view()
    before = view.used.copy()
    plan = cluster.plan(strategy, batch, seed=seed)
    assert cluster.plan(strategy, batch, seed=seed).assignment.tolist() == plan.assignment.tolist()
    assert (view.used == before).all()

    assert plan.assignment.dtype == np.int32
    assert plan.considered == len(batch)
    for index, row in enumerate(plan.assignment.tolist()):
        task = cluster.classes[batch[index]]
        if row < 0:
            assert index in plan.reasons
            continue
        assert index not in plan.reasons
        assert view.placeable[row]
        assert task.skill in view.skills[row]
        assert view.agent_ids[row] not in task.avoid
        cluster.table.take(row, cluster.classes.demand_row(batch[index], cluster.table))
    touched = sorted({row for row in plan.assignment.tolist() if row >= 0})
    assert (view.free[touched] >= 0).all()
    for reason in map(plan.reasons.__getitem__, plan.reasons):
        assert sum(reason.reasons.values()) == agents, "an agent had room and was not used"


@every_strategy
def test_an_empty_cluster_places_nothing(strategy: str) -> None:
    cluster = Cluster()
    plan = cluster.plan(strategy, [cluster.task({"cpu": 1})] * 3)
    assert plan.assignment.tolist() == [-1, -1, -1]
    assert str(plan.reasons[2]) == "there is no agent"


@every_strategy
@pytest.mark.parametrize("agents", [0, 3, 40])
def test_an_empty_batch_is_an_empty_plan(strategy: str, agents: int) -> None:
    plan = Cluster(agents=agents).plan(strategy, [])
    assert plan.assignment.shape == (0,)
    assert not plan.reasons


@every_strategy
@pytest.mark.parametrize("agents", [3, 40])
def test_tasks_are_taken_in_the_given_order(strategy: str, agents: int) -> None:
    cluster = Cluster(agents=agents, capacity={"slots": 1})
    plan = cluster.plan(strategy, [cluster.task({"slots": 1})] * (agents + 2))
    assert sorted(plan.assignment[:agents].tolist()) == list(range(agents))
    assert plan.assignment[agents:].tolist() == [-1, -1]
    assert list(plan.reasons) == [agents, agents + 1]
    assert plan.reasons[agents].reasons == {"slots short by 1": agents}


@every_strategy
@pytest.mark.parametrize("agents", [3, 40])
def test_a_resource_that_an_agent_has_none_of_keeps_its_tasks_away(
    strategy: str, agents: int
) -> None:
    cluster = Cluster(agents=agents)
    row = cluster.add("with-gpu", {"cpu": 1000, "gpu": 1000, "slots": 10})
    tasks = [cluster.task({"gpu": 500, "slots": 1}), cluster.task({"cpu": 1})]
    plan = cluster.plan(strategy, [tasks[0]] * 3 + [tasks[1]])
    assert plan.assignment[:3].tolist() == [row, row, -1]
    assert plan.assignment[3] >= 0
    assert plan.reasons[2].reasons == {
        "gpu short by 500m even when empty": agents,
        "gpu short by 500m": 1,
    }


@every_strategy
@pytest.mark.parametrize("agents", [3, 40])
def test_a_demand_for_nothing_is_placed(strategy: str, agents: int) -> None:
    cluster = Cluster(agents=agents, capacity={})
    assert cluster.plan(strategy, [cluster.task({})] * 2).assignment.tolist() == [0, 0]


@every_strategy
@pytest.mark.parametrize("agents", [3, 40])
@pytest.mark.parametrize(
    ("demand", "reason"),
    [
        ({"cpu": 1500}, "cpu short by 500m even when empty"),
        ({"tpu": 2, "cpu": 1}, "tpu short by 2 even when empty"),
    ],
)
def test_a_demand_beyond_every_agent_is_refused_with_its_reason(
    strategy: str, agents: int, demand: Mapping[str, int], reason: str
) -> None:
    cluster = Cluster(agents=agents)
    # Another class's placements in between must not bring the impossible ones back.
    tasks = [cluster.task(demand), cluster.task({"cpu": 1}), cluster.task(demand)]
    plan = cluster.plan(strategy, tasks)
    assert (plan.assignment >= 0).tolist() == [False, True, False]
    assert plan.reasons[2].reasons == {reason: agents}


@every_strategy
@pytest.mark.parametrize("agents", [3, 40])
def test_avoided_and_cordoned_agents_get_nothing(strategy: str, agents: int) -> None:
    cluster = Cluster(agents=agents, capacity={"slots": 1})
    cluster.table.set_placeable("a1", placeable=False)
    cluster.table.set_placeable("a2", placeable=False, why_not="draining")
    task = cluster.task({"slots": 1}, avoid=frozenset({"a0", "unknown"}))
    plan = cluster.plan(strategy, [task] * agents)
    assert sorted(plan.assignment.tolist())[3:] == list(range(3, agents))
    assert sorted(plan.assignment.tolist())[:3] == [-1] * 3
    reasons = {"avoided": 1, "cordoned": 1, "draining": 1}
    if agents > 3:
        reasons["slots short by 1"] = agents - 3
    assert plan.reasons[agents - 1].reasons == reasons


@every_strategy
def test_stop_ends_the_work_and_says_how_far_it_came(strategy: str) -> None:
    cluster = Cluster(agents=2, capacity={"slots": 100_000})
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 2

    plan = cluster.plan(strategy, [cluster.task({"slots": 1})] * 2000, stop=stop)
    assert 0 < plan.considered < 2000
    assert (plan.assignment[: plan.considered] >= 0).all()
    assert (plan.assignment[plan.considered :] == -1).all()
    assert not plan.reasons


@every_strategy
def test_a_plan_is_measured_only_when_the_policy_asks(strategy: str) -> None:
    cluster = Cluster(agents=2)
    task = cluster.task({"cpu": 500})
    assert np.isnan(cluster.plan(strategy, [task]).J)
    plan = cluster.plan(strategy, [task], policy=Policy(measured=True))
    assert (plan.T, plan.U, plan.B) == (1.0, 0.125, 0.25)


@pytest.mark.parametrize("agents", [2, 7, 24, 25, 60])
def test_worst_fit_spreads_equal_tasks_evenly_over_equal_agents(agents: int) -> None:
    cluster = Cluster(agents=agents, capacity={"cpu": 64_000, "slots": 64})
    plan = cluster.plan("worst_fit", [cluster.task({"cpu": 100, "slots": 1})] * (3 * agents))
    assert plan.assignment.tolist() == list(range(agents)) * 3


@pytest.mark.parametrize("agents", [2, 60])
def test_worst_fit_spreads_by_the_slots_where_these_are_scarcest(agents: int) -> None:
    cluster = Cluster()
    for index in range(agents):
        cluster.add(f"a{index}", {"cpu": 64_000, "slots": 2 if index else 4})
    task = cluster.task({"cpu": 1, "slots": 1})
    # Three of four slots left beat one of two; so do two of four, by the lower row.
    assert cluster.plan("worst_fit", [task] * 3).assignment.tolist() == [0, 0, 1]


@pytest.mark.parametrize("agents", [3, 40])
def test_worst_fit_takes_a_sick_agent_for_a_fuller_one(agents: int) -> None:
    cluster = Cluster(agents=agents)
    task = cluster.task({"cpu": 100, "slots": 1})
    for index in range(agents):
        if index != 1:
            cluster.table.set_health(f"a{index}", 0.75)
    # a1 has 0.9, 0.8, 0.7 left after one, two, three; the others 0.9 * 0.75 = 0.675 after one.
    assert cluster.plan("worst_fit", [task] * 4).assignment.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("agents", [3, 40])
def test_best_fit_fills_one_agent_before_the_next(agents: int) -> None:
    cluster = Cluster(agents=agents)
    task = cluster.task({"cpu": 400, "slots": 1})
    assert cluster.plan("best_fit", [task] * 5).assignment.tolist() == [0, 0, 1, 1, 2]


def test_every_strategy_is_known_by_name() -> None:
    assert set(CONSTRUCTIVE) <= set(names())
    assert all(get(name).name == name for name in names())
    with pytest.raises(
        InvalidInput, match=r"strategy: 'worst' is not accepted; one of .*best_fit,"
    ):
        get("worst")


def test_a_view_from_before_a_change_is_not_planned_on() -> None:
    cluster = Cluster(agents=1)
    old = cluster.table.view()
    cluster.add("late", {"cpu": 1})
    batch = TaskBatch.of(cluster.classes, [cluster.task({"cpu": 1})])
    with pytest.raises(AssertionError, match="changed after this view"):
        get("worst_fit").plan(old, batch, Policy(), 0.0, np.random.default_rng(0), lambda: False, 0)


def test_a_frozen_snapshot_gives_the_same_plan_after_the_table_moved_on() -> None:
    cluster, batch = random_cluster(5, 40, 6, 100)
    frozen = cluster.table.view().freeze()
    expected = cluster.plan("worst_fit", batch).assignment.tolist()
    for index in range(0, 40, 2):
        cluster.table.remove(f"a{index}")
    cluster.add("other", {"cpu": 10**6, "fresh": 3})
    plan = get("worst_fit").plan(
        frozen,
        TaskBatch.of(cluster.classes, batch),
        Policy(),
        0.0,
        np.random.default_rng(0),
        lambda: False,
        0,
    )
    assert plan.assignment.tolist() == expected
