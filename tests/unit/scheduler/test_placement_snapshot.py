"""The agent table: kept one change at a time, it equals one that is built anew."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput, NotFound
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.placement import AgentTable, ClassTable, Snapshot, TaskClass
from muster_scheduler.placement.classes import row_is_eligible
from muster_scheduler.placement.snapshot import MAX_COLUMNS, ChangeLog

NO_SKILLS: frozenset[str] = frozenset()
RESOURCES = ("cpu", "memory", "slots", "gpu", "tpu", "licence", "fpga")
CLASSES = (
    TaskClass("echo", ResourceVector()),
    TaskClass("sleep", ResourceVector.of({"cpu": 1}), (), frozenset({"a1", "a2"})),
    TaskClass("echo", ResourceVector.of({"gpu": 1}), (Constraint("zone", "==", ("east",)),)),
    TaskClass("echo", ResourceVector(), (Constraint("agent.id", "in", ("a0", "a3", "a5")),)),
)


@dataclass
class Known:
    """What a table should know of one agent."""

    capacity: ResourceVector
    skills: frozenset[str]
    labels: dict[str, str]
    placeable: bool
    health: float
    held: list[ResourceVector] = field(default_factory=list)


vectors = st.dictionaries(st.sampled_from(RESOURCES), st.integers(0, 100), max_size=4).map(
    ResourceVector.of
)
agent_ids = st.integers(0, 40).map("a{}".format)
upserts = st.tuples(
    st.just("upsert"),
    agent_ids,
    st.builds(
        Known,
        vectors,
        st.frozensets(st.sampled_from(["echo", "sleep"])),
        st.dictionaries(st.just("zone"), st.sampled_from(["east", "west"])),
        st.booleans(),
        st.sampled_from([0.0, 0.5, 1.0]),
    ),
)
operations = st.one_of(
    upserts,
    upserts,
    st.tuples(st.just("remove"), agent_ids, st.none()),
    st.tuples(st.just("placeable"), agent_ids, st.booleans()),
    st.tuples(st.just("health"), agent_ids, st.sampled_from([0.25, 1.0])),
    st.tuples(st.just("take"), agent_ids, vectors),
    st.tuples(st.just("give_back"), agent_ids, st.none()),
    st.tuples(st.just("look"), agent_ids, st.none()),
)


class Model:
    """A table next to a plain dictionary of what it should say."""

    def __init__(self) -> None:
        self.table, self.classes = AgentTable(), ClassTable()
        self.known: dict[str, Known] = {}
        self.class_ids = [self.classes.intern(c) for c in CLASSES]

    def apply(self, kind: str, agent_id: str, value: object) -> None:
        known = self.known.get(agent_id)
        if kind == "upsert":
            assert isinstance(value, Known)
            self.table.upsert(
                agent_id,
                value.capacity,
                value.skills,
                value.labels,
                value.placeable,
                value.health,
            )
            # Hypothesis may hand the same example out again, so it is not changed.
            held = known.held if known else []
            self.known[agent_id] = Known(
                value.capacity, value.skills, value.labels, value.placeable, value.health, held
            )
        elif kind == "look":
            self.check_masks()
        elif known is None:
            return
        elif kind == "remove":
            self.table.remove(agent_id)
            del self.known[agent_id]
        elif kind == "placeable":
            known.placeable = bool(value)
            self.table.set_placeable(agent_id, known.placeable)
        elif kind == "health":
            assert isinstance(value, float)
            known.health = value
            self.table.set_health(agent_id, value)
        elif kind == "take":
            assert isinstance(value, ResourceVector)
            known.held.append(value)
            self.table.take(self.table.row_of(agent_id), self.table.demand_row(value))
        elif known.held:
            given = self.table.demand_row(known.held.pop(0))
            self.table.give_back(self.table.row_of(agent_id), given)

    def check_masks(self) -> None:
        view = self.table.view()
        for class_id in self.class_ids:
            task = self.classes[class_id]
            fresh = [
                row_is_eligible(task, view, row) and view.agent_ids[row] not in task.avoid
                for row in range(view.row_count)
            ]
            assert self.classes.eligible(class_id, view).tolist() == fresh

    def rebuilt(self) -> AgentTable:
        table = AgentTable()
        for agent_id, known in self.known.items():
            row = table.upsert(
                agent_id,
                known.capacity,
                known.skills,
                known.labels,
                known.placeable,
                known.health,
            )
            for held in known.held:
                table.take(row, table.demand_row(held))
        return table


def agent_facts(view: Snapshot, agent_id: str) -> dict[str, object]:
    row = view.rows[agent_id]
    assert view.agent_ids[row] == agent_id
    facts: dict[str, object] = {
        "alive": bool(view.alive[row]),
        "placeable": bool(view.placeable[row]),
        "why_not": view.why_not[row],
        "health": float(view.health[row]),
        "skills": view.skills[row],
        "labels": dict(view.labels[row]),
    }
    for column, name in enumerate(view.names):
        capacity, used = int(view.capacity[row, column]), int(view.used[row, column])
        assert view.columns[name] == column
        assert view.free[row, column] == capacity - used
        assert view.divisor[row, column] == max(capacity, 1)
        if capacity or used:
            facts[name] = (capacity, used)
    return facts


@settings(max_examples=150, deadline=None)
@given(st.lists(operations, max_size=120))
def test_an_incremental_table_equals_one_built_anew(
    steps: list[tuple[str, str, object]],
) -> None:
    model = Model()
    for step in steps:
        model.apply(*step)
    view, fresh = model.table.view(), model.rebuilt().view()
    assert set(view.rows) == set(fresh.rows) == set(model.known)
    for agent_id in model.known:
        assert agent_facts(view, agent_id) == agent_facts(fresh, agent_id)
    empty = ~view.alive
    assert int(view.alive.sum()) == len(model.table) == len(model.known)
    assert not view.placeable[empty].any()
    assert not view.capacity[empty].any()
    assert not view.used[empty].any()
    model.check_masks()


def test_masks_are_right_after_more_changes_than_are_remembered() -> None:
    model = Model()
    for index in range(41):
        model.apply(
            "upsert", f"a{index}", Known(ResourceVector(), frozenset({"echo"}), {}, True, 1.0)
        )
    model.check_masks()
    for step in range(5001):
        model.apply("placeable", f"a{step % 41}", (step // 41) % 2 == 1)
    model.check_masks()


def test_a_change_log_says_when_it_no_longer_knows() -> None:
    log = ChangeLog()
    assert log.since(0) == []
    for row in range(10_000):
        log.note(row)
    assert log.version == 10_000
    assert log.since(9_997) == [9_997, 9_998, 9_999]
    assert log.since(10_000) == []
    assert log.since(0) is None
    oldest = next(version for version in range(10_000) if log.since(version) is not None)
    assert log.since(oldest) == list(range(oldest, 10_000))
    assert 1_000 <= 10_000 - oldest <= 5_000


def test_a_mask_that_was_given_out_does_not_change() -> None:
    model = Model()
    for index in range(3):
        model.apply(
            "upsert", f"a{index}", Known(ResourceVector(), frozenset({"echo"}), {}, True, 1.0)
        )
    given_out = model.classes.eligible(model.class_ids[0], model.table.view())
    model.table.set_placeable("a1", placeable=False)
    assert model.classes.eligible(model.class_ids[0], model.table.view()).tolist() == [
        True,
        False,
        True,
    ]
    assert given_out.tolist() == [True, True, True]


def test_rows_are_in_order_of_appearance_and_the_lowest_empty_one_is_used_again() -> None:
    table = AgentTable()
    for name in ("c", "a", "b", "d"):
        table.upsert(name, ResourceVector(), NO_SKILLS, {}, placeable=True)
    assert [table.agent_id_at(row) for row in range(4)] == ["c", "a", "b", "d"]
    table.remove("b")
    table.remove("c")
    assert table.agent_id_at(0) == ""
    assert "c" not in table
    rows = [
        table.upsert(name, ResourceVector(), NO_SKILLS, {}, placeable=True)
        for name in ("e", "a", "f", "g")
    ]
    assert rows == [0, 1, 2, 4]


def test_a_removed_agents_use_does_not_pass_to_the_next_on_its_row() -> None:
    table = AgentTable()
    capacity = ResourceVector.of({"cpu": 5})
    row = table.upsert("a", capacity, NO_SKILLS, {}, placeable=True)
    table.take(row, table.demand_row(capacity))
    table.remove("a")
    assert table.upsert("b", capacity, NO_SKILLS, {}, placeable=True) == row
    assert not table.view().used.any()


def test_an_agent_that_shrinks_below_its_use_has_less_than_nothing_free() -> None:
    table = AgentTable()
    row = table.upsert("a", ResourceVector.of({"cpu": 5}), NO_SKILLS, {}, placeable=True)
    table.take(row, table.demand_row(ResourceVector.of({"cpu": 4})))
    table.upsert("a", ResourceVector.of({"cpu": 3}), NO_SKILLS, {}, placeable=True)
    assert table.view().free[row, 0] == -1


def test_giving_back_more_than_was_taken_is_our_own_bug() -> None:
    table = AgentTable()
    row = table.upsert("a", ResourceVector.of({"cpu": 5}), NO_SKILLS, {}, placeable=True)
    demand = table.demand_row(ResourceVector.of({"cpu": 2}))
    table.take(row, demand)
    table.give_back(row, demand)
    table.give_back(row, demand)
    with pytest.raises(AssertionError, match="more was given back"):
        table.view()
    with pytest.raises(AssertionError, match="takes nothing"):
        table.take(-1, demand)
    table.remove("a")
    with pytest.raises(AssertionError, match="without an agent"):
        table.take(row, demand)


def test_a_demand_row_stays_right_when_columns_are_added() -> None:
    table = AgentTable()
    row = table.upsert("a", ResourceVector.of({"cpu": 5}), NO_SKILLS, {}, placeable=True)
    demand = table.demand_row(ResourceVector.of({"cpu": 2}))
    fresh = {f"r{n}": 1 for n in range(20)}
    table.upsert("b", ResourceVector.of(fresh), NO_SKILLS, {}, placeable=True)
    table.take(row, demand)
    assert table.view().used[row].tolist() == [2] + [0] * 23
    table.give_back(row, demand)
    assert not table.view().used.any()


def test_a_view_is_live_until_rows_or_columns_change() -> None:
    table = AgentTable()
    row = table.upsert("a", ResourceVector.of({"cpu": 5}), NO_SKILLS, {}, placeable=True)
    view = table.view()
    table.take(row, table.demand_row(ResourceVector.of({"cpu": 2})))
    table.set_health("a", 0.5)
    assert view.is_current()
    assert table.view() is view
    assert (view.free[row, 0], view.health[row]) == (3, 0.5)
    table.upsert("a", ResourceVector.of({"cpu": 5, "gpu": 1}), NO_SKILLS, {}, placeable=True)
    assert not view.is_current()
    assert table.view().names[-1] == "gpu"
    view = table.view()
    table.set_placeable("a", placeable=False)
    assert not view.is_current()


def test_a_frozen_view_keeps_what_it_saw() -> None:
    table = AgentTable()
    row = table.upsert("a", ResourceVector.of({"cpu": 5}), NO_SKILLS, {"k": "v"}, placeable=True)
    frozen = table.view().freeze()
    table.take(row, table.demand_row(ResourceVector.of({"cpu": 2, "gpu": 1})))
    table.remove("a")
    assert frozen.is_current()
    assert agent_facts(frozen, "a")["cpu"] == (5, 0)
    assert frozen.labels[row] == {"k": "v"}


def test_unknown_agents_and_bad_values_are_refused() -> None:
    table = AgentTable()
    for call in (table.remove, table.row_of):
        with pytest.raises(NotFound, match="no agent 'ghost'"):
            call("ghost")
    with pytest.raises(NotFound):
        table.set_placeable("ghost", placeable=True)
    for health in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidInput, match=r"agents\.a\.health"):
            table.upsert("a", ResourceVector(), NO_SKILLS, {}, True, health)
    assert len(table) == 0


def test_resource_names_of_a_cluster_are_bounded() -> None:
    table = AgentTable()
    for index in range(MAX_COLUMNS - 4):
        name = f"r{index}"
        table.upsert("a", ResourceVector.of({name: 1}), NO_SKILLS, {}, placeable=True)
    with pytest.raises(InvalidInput, match=f"at most {MAX_COLUMNS} distinct resource names"):
        table.upsert("b", ResourceVector.of({"one_more": 1}), NO_SKILLS, {}, placeable=True)
    assert "b" not in table
    assert table.view().capacity.shape == (1, MAX_COLUMNS)
    assert np.flatnonzero(table.view().capacity[0]).tolist() == [MAX_COLUMNS - 1]
