"""The smallest change: applied it gives a place, and nothing smaller of its kind does."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.placement.change import Change, ChangeKind, fits, smallest_change
from muster_scheduler.placement.classes import ClassTable, Spread, TaskBatch, TaskClass
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.snapshot import AgentTable
from muster_scheduler.placement.strategy import get

GROUP = ("t", "app", "x")


@dataclass
class Machine:
    """An agent as it is drawn; `held` tasks of GROUP are on it."""

    capacity: dict[str, int]
    used: dict[str, int]
    skills: frozenset[str]
    labels: dict[str, str]
    placeable: bool
    held: int
    gpu_used: tuple[int, ...] = ()


def table_of(machines: list[Machine]) -> AgentTable:
    table = AgentTable()
    for number, one in enumerate(machines):
        capacity = ResourceVector.of(one.capacity)
        row = table.upsert(f"a{number}", capacity, one.skills, one.labels, one.placeable)
        used = {name: min(amount, one.capacity[name]) for name, amount in one.used.items()}
        table.take(row, table.demand_row(ResourceVector.of(used)))
        for index, amount in enumerate(one.gpu_used[: one.capacity.get("gpu", 0) // 1000]):
            if amount:
                demand = table.demand_row(ResourceVector.of({"gpu": amount}))
                table.take(row, demand, {"gpu": (index,)})
        for _ in range(one.held):
            table.join(row, GROUP)
    return table


def is_placed(table: AgentTable, task_class: TaskClass) -> bool:
    """By the very strategy that places live tasks."""
    classes = ClassTable()
    batch = TaskBatch.of(classes, [classes.intern(task_class)])
    plan = get("worst_fit").plan(table.view(), batch, Policy(), 0.0, None, lambda: False, 0)  # type: ignore[arg-type]
    return int(plan.assignment[0]) >= 0


def with_amount(task_class: TaskClass, name: str, amount: int) -> TaskClass:
    amounts = task_class.demand.as_dict()
    amounts.pop(name)
    if amount:
        amounts[name] = amount
    return replace(task_class, demand=ResourceVector.of(amounts))


def with_most(task_class: TaskClass, most: int) -> TaskClass:
    return replace(task_class, spread=(Spread(GROUP, most),))


def without(task_class: TaskClass, constraint: Constraint) -> TaskClass:
    left = tuple(one for one in task_class.constraints if one != constraint)
    return replace(task_class, constraints=left)


def applied(machines: list[Machine], task_class: TaskClass, change: Change) -> bool:
    """Whether the task has a place once the change is made."""
    machines = [replace(one) for one in machines]
    if change.kind is ChangeKind.CUT:
        assert task_class.demand.get(change.resource) == change.from_amount
        task_class = with_amount(task_class, change.resource, change.to_amount)
    elif change.kind is ChangeKind.RAISE_MAX:
        assert task_class.spread[0].most == change.from_amount
        task_class = with_most(task_class, change.to_amount)
    elif change.kind is ChangeKind.LIFT_CONSTRAINT:
        assert change.constraint is not None
        task_class = without(task_class, change.constraint)
    elif change.kind is ChangeKind.DROP_AVOID:
        task_class = replace(task_class, avoid=frozenset())
    elif change.kind is ChangeKind.UNCORDON:
        machines[int(change.agent[1:])].placeable = True
    table = table_of(machines)
    if change.kind is ChangeKind.ADD_AGENT:
        capacity = ResourceVector.of(change.capacity)
        ident = change.agent or "new"
        table.upsert(ident, capacity, frozenset({change.skill}), dict(change.labels), True)
    return is_placed(table, task_class)


RANKS = {
    ChangeKind.RAISE_MAX: 1,
    ChangeKind.LIFT_CONSTRAINT: 2,
    ChangeKind.DROP_AVOID: 3,
    ChangeKind.UNCORDON: 4,
    ChangeKind.ADD_AGENT: 6,
}


def rank_of(change: Change) -> tuple[float, float]:
    if change.kind is ChangeKind.CUT:
        share = 1 - change.to_amount / change.from_amount
        return (0 if share <= 0.5 else 5), share
    return RANKS[change.kind], change.to_amount - change.from_amount


def every_change(task_class: TaskClass, machines: list[Machine]) -> list[Change]:
    """Each single change that there is, small amounts tried one by one."""
    changes = [Change(ChangeKind.LIFT_CONSTRAINT, constraint=one) for one in task_class.constraints]
    if task_class.avoid:
        changes.append(Change(ChangeKind.DROP_AVOID))
    for spread in task_class.spread:
        changes += [
            Change(ChangeKind.RAISE_MAX, from_amount=spread.most, to_amount=most)
            for most in range(spread.most + 1, 7)
        ]
    for name, amount in task_class.demand.items():
        if name == "slots":
            continue
        least = 1 if name in ("cpu", "memory") else 0
        step = 250 if name == "gpu" else 1
        cuts = [c for c in range(least, amount) if c % step == 0]
        if name == "gpu":
            cuts = [c for c in cuts if c <= 1000 or c % 1000 == 0]
        changes += [
            Change(ChangeKind.CUT, resource=name, from_amount=amount, to_amount=cut) for cut in cuts
        ]
    changes += [
        Change(ChangeKind.UNCORDON, agent=f"a{n}")
        for n, one in enumerate(machines)
        if not one.placeable
    ]
    return changes


amounts = st.integers(0, 12)
machines = st.lists(
    st.builds(
        Machine,
        capacity=st.fixed_dictionaries(
            {"cpu": amounts, "memory": amounts, "slots": st.integers(0, 2)},
            optional={"gpu": st.sampled_from([1000, 2000])},
        ),
        used=st.fixed_dictionaries({"cpu": amounts, "slots": st.integers(0, 1)}),
        skills=st.sampled_from([frozenset({"s"}), frozenset({"s", "o"}), frozenset({"o"})]),
        labels=st.fixed_dictionaries(
            {}, optional={"zone": st.sampled_from("ab"), "size": st.sampled_from(["1", "5"])}
        ),
        placeable=st.booleans(),
        held=st.integers(0, 3),
        gpu_used=st.lists(st.sampled_from([0, 250, 500, 1000]), max_size=2).map(tuple),
    ),
    max_size=4,
)
constraint = st.sampled_from(
    [
        Constraint("zone", "==", ("a",)),
        Constraint("zone", "!=", ("b",)),
        Constraint("zone", "exists"),
        Constraint("size", ">", ("3",)),
        Constraint("size", "<", ("3",)),
        Constraint("agent.id", "in", ("a1", "b")),
    ]
)
tasks = st.builds(
    lambda demand, constraints, avoid, most: TaskClass(
        "s",
        ResourceVector.of({"slots": 1, **{n: a for n, a in demand.items() if a}}),
        tuple(constraints),
        frozenset(avoid),
        (Spread(GROUP, most),) if most else (),
    ),
    st.fixed_dictionaries(
        {"cpu": amounts}, optional={"memory": amounts, "gpu": st.sampled_from([500, 1000, 2000])}
    ),
    st.lists(constraint, max_size=3, unique=True),
    st.sets(st.sampled_from(["a0", "a1"]), max_size=1),
    st.integers(0, 3),
)


@settings(max_examples=300, deadline=None)
@given(machines, tasks)
def test_it_gives_a_place_and_no_smaller_one_does(drawn: list[Machine], task: TaskClass) -> None:
    table = table_of(drawn)
    snapshot = table.view()
    cordoned = {row for row in range(len(drawn)) if not drawn[row].placeable}
    change = smallest_change(snapshot, task, cordoned)
    placed = is_placed(table, task)
    assert placed == any(fits(snapshot, row, task) for row in range(len(drawn)))
    if placed:
        assert change is None
        return
    helping = [one for one in every_change(task, drawn) if applied(drawn, task, one)]
    if change is None:
        assert not helping
        return
    assert applied(drawn, task, change)
    assert all(rank_of(change) <= rank_of(one) for one in helping)


def test_constraints_that_contradict_each_other_are_met_by_no_agent() -> None:
    both = (Constraint("zone", "==", ("a",)), Constraint("zone", "!=", ("a",)))
    task = TaskClass("s", ResourceVector.of({"slots": 1}), both)
    assert smallest_change(AgentTable().view(), task) is None
    numbers = (Constraint("size", ">", ("1",)), Constraint("size", "<", ("2",)))
    change = smallest_change(AgentTable().view(), replace(task, constraints=numbers))
    assert change is not None
    assert 1 < float(change.labels["size"]) < 2


def machine(cpu: int, *, placeable: bool = True, **more: int) -> Machine:
    capacity = {"cpu": cpu, "memory": 9, "slots": 2, **more}
    return Machine(capacity, {}, frozenset({"s"}), {}, placeable, 0)


def found(drawn: list[Machine], **demand: int) -> Change:
    cordoned = {row for row in range(len(drawn)) if not drawn[row].placeable}
    task = TaskClass("s", ResourceVector.of({"slots": 1, **demand}))
    change = smallest_change(table_of(drawn).view(), task, cordoned)
    assert change is not None
    return change


def test_the_order_of_changes() -> None:
    small, large = machine(3), machine(4)
    assert found([small, large], cpu=12).to_amount == 4
    assert found([large, small], cpu=12).to_amount == 4
    cordoned = machine(12, placeable=False)
    assert found([large, cordoned], cpu=12).kind is ChangeKind.UNCORDON
    assert found([large, cordoned], cpu=8).kind is ChangeKind.CUT


def test_a_cut_of_devices_is_to_what_one_device_has() -> None:
    shared = replace(machine(9, gpu=2_000), gpu_used=(750, 500))
    assert found([shared], gpu=2_000).to_amount == 500
    assert found([shared], gpu=1_000).to_amount == 500
