"""Task classes: interning, constraints, explanations."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.placement import AgentTable, ClassTable, TaskBatch, TaskClass, explain
from muster_scheduler.placement.classes import is_met


@pytest.mark.parametrize(
    ("op", "values", "label", "met"),
    [
        ("==", ("east",), "east", True),
        ("==", ("east",), "west", False),
        ("==", ("east",), None, False),
        ("!=", ("east",), "west", True),
        ("!=", ("east",), "east", False),
        ("!=", ("east",), None, True),
        ("in", ("east", "west"), "west", True),
        ("in", ("east", "west"), "north", False),
        ("in", ("east", "west"), None, False),
        ("not_in", ("east", "west"), "north", True),
        ("not_in", ("east", "west"), "west", False),
        ("not_in", ("east", "west"), None, True),
        ("exists", (), "", True),
        ("exists", (), None, False),
        ("not_exists", (), None, True),
        ("not_exists", (), "", False),
        (">", ("9",), "10", True),
        (">", ("9",), "9", False),
        (">", ("9",), "9.5", True),
        ("<", ("9",), "-10", True),
        ("<", ("9",), "9", False),
        (">", ("9",), "many", False),
        ("<", ("9",), "few", False),
        ("<", ("nine",), "1", False),
        (">", ("9",), None, False),
        ("<", ("9",), None, False),
        (">", ("9",), "nan", False),
    ],
)
def test_constraints(op: str, values: tuple[str, ...], label: str | None, met: bool) -> None:
    assert is_met(Constraint("zone", op, values), label) is met


def task(
    skill: str = "echo", demand: Mapping[str, int] | None = None, *constraints: Constraint
) -> TaskClass:
    return TaskClass(skill, ResourceVector.of(demand or {}), constraints)


def test_equal_classes_share_an_id() -> None:
    classes = ClassTable()
    first = classes.intern(task("echo", {"cpu": 1}))
    assert classes.intern(task("echo", {"cpu": 1})) == first
    others = {
        classes.intern(task("echo", {"cpu": 2})),
        classes.intern(task("sleep", {"cpu": 1})),
        classes.intern(task("echo", {"cpu": 1}, Constraint("zone", "exists"))),
        classes.intern(TaskClass("echo", ResourceVector.of({"cpu": 1}), (), frozenset({"a"}))),
    }
    assert len(others | {first}) == len(classes) == 5


def test_forgotten_classes_make_room_for_others() -> None:
    classes = ClassTable()
    ids = [classes.intern(task("echo", {"cpu": n})) for n in range(1, 6)]
    assert classes.forget_all_but({ids[1], ids[3]}) == 3
    assert len(classes) == 2
    assert classes[ids[3]] == task("echo", {"cpu": 4})
    with pytest.raises(AssertionError, match="after it was forgotten"):
        classes[ids[0]]
    fresh = [classes.intern(task("sleep", {"cpu": n})) for n in range(1, 4)]
    assert sorted(fresh) == [ids[0], ids[2], ids[4]]
    assert classes.intern(task("echo", {"cpu": 2})) == ids[1]


def test_demands_follow_the_columns_as_they_are_added() -> None:
    table, classes = AgentTable(), ClassTable()
    class_id = classes.intern(task("echo", {"gpu": 500, "cpu": 3}))
    table.upsert("a", ResourceVector.of({"cpu": 5}), frozenset({"echo"}), {}, placeable=True)
    before = classes.demand(class_id, table.view())
    assert (before.columns, before.missing) == (((0, 3),), ("gpu",))
    table.upsert("b", ResourceVector.of({"gpu": 1000}), frozenset({"echo"}), {}, placeable=True)
    after = classes.demand(class_id, table.view())
    assert (after.columns, after.missing) == (((0, 3), (4, 500)), ())
    assert after.amounts == (3, 0, 0, 0, 500)
    assert classes.demand_row(class_id, table).tolist() == [3, 0, 0, 0, 500]


def test_asking_for_a_resource_gives_it_no_column() -> None:
    table, classes = AgentTable(), ClassTable()
    table.upsert("a", ResourceVector.of({"cpu": 5}), frozenset({"echo"}), {}, placeable=True)
    class_id = classes.intern(task("echo", {"unheard_of": 1}))
    classes.demand(class_id, table.view())
    assert "unheard_of" not in table.view().names


def test_one_class_table_serves_two_agent_tables() -> None:
    classes = ClassTable()
    class_id = classes.intern(task())
    views = []
    for skill in ("echo", "sleep"):
        table = AgentTable()
        table.upsert("a", ResourceVector(), frozenset({skill}), {}, placeable=True)
        views.append(table.view())
    for _ in range(2):
        assert [classes.eligible(class_id, view).tolist() for view in views] == [[True], [False]]


def test_a_batch_has_defaults() -> None:
    batch = TaskBatch.of(ClassTable(), [0, 1])
    assert (batch.priority.tolist(), batch.estimate_s.tolist()) == ([0, 0], [1.0, 1.0])
    assert len(batch) == 2


def test_each_agent_is_counted_under_its_first_reason() -> None:
    table = AgentTable()
    echo = frozenset({"echo"})
    east = {"zone": "east"}

    def add(
        name: str,
        capacity: Mapping[str, int],
        skills: frozenset[str] = echo,
        labels: Mapping[str, str] = east,
    ) -> int:
        return table.upsert(name, ResourceVector.of(capacity), skills, labels, placeable=True)

    roomy = {"cpu": 2000, "memory": 2 * 1024**3, "slots": 2}
    add("no-skill-and-cordoned", roomy, frozenset({"sleep"}))
    table.set_placeable("no-skill-and-cordoned", placeable=False)
    add("elsewhere", roomy, labels={"zone": "west"})
    add("cordoned", roomy)
    table.set_placeable("cordoned", placeable=False)
    add("draining", roomy)
    table.set_placeable("draining", placeable=False, why_not="draining")
    add("failed-it", roomy)
    add("too-small", {**roomy, "cpu": 250})
    for name, cpu in (("busy", 1500), ("busier", 1900)):
        row = add(name, roomy)
        table.take(row, table.demand_row(ResourceVector.of({"cpu": cpu})))
    row = add("no-memory", roomy)
    table.take(row, table.demand_row(ResourceVector.of({"memory": 1024**3 + 512 * 1024**2})))
    row = add("left", roomy)
    table.remove("left")
    wanted = TaskClass(
        "echo",
        ResourceVector.of({"cpu": 1000, "memory": 1024**3, "slots": 1}),
        (Constraint("zone", "in", ("east", "north")),),
        frozenset({"failed-it"}),
    )
    found = explain(table.view(), wanted)
    assert found.agents == 9
    assert found.reasons == {
        "skill": 1,
        "zone in east, north": 1,
        "cordoned": 1,
        "draining": 1,
        "avoided": 1,
        "cpu short by 750m even when empty": 1,
        "cpu short by 500m": 2,
        "memory short by 512Mi": 1,
    }
    assert str(found).startswith("0 of 9 agents fit (skill: 1, zone in east, north: 1, ")


def test_agents_with_room_are_counted_under_no_reason() -> None:
    table = AgentTable()
    for name in ("a", "b"):
        table.upsert(name, ResourceVector.of({"cpu": 1}), frozenset({"echo"}), {}, placeable=True)
    table.set_placeable("b", placeable=False)
    found = explain(table.view(), task("echo", {"cpu": 1}))
    assert found.reasons == {"cordoned": 1}
    assert str(found) == "1 of 2 agents fit (cordoned: 1)"
