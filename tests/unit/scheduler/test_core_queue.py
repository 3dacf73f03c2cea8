"""The order of waiting tasks: priority with ageing, tenants in turn, age."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.core_bench import ident

from muster.domain.ids import TenantId
from muster.domain.task import TaskSpec, TaskStatus
from muster_scheduler.core.queue import AGEING_MS, Candidate, Line, LineKey, WaitingQueue
from muster_scheduler.core.records import OpenTask

T1, T2 = TenantId("t1"), TenantId("t2")
ROOMY = 1 << 40


def task(
    number: int,
    *,
    tenant: TenantId = T1,
    priority: int = 50,
    class_id: int = 0,
    created_ms: int = 0,
) -> OpenTask:
    spec = TaskSpec(ident(number), "echo", tenant=tenant, priority=priority)
    made = OpenTask(spec, TaskStatus(created_clock_ms=created_ms), None, stored=True)
    made.class_id = made.plain_class_id = class_id
    return made


def queue_of(*tasks: OpenTask) -> WaitingQueue:
    queue = WaitingQueue()
    for one in tasks:
        queue.add(one)
    return queue


def roomy(line: Line) -> tuple[int, int]:
    return ROOMY, line.key[2]


def take(
    queue: WaitingQueue,
    limit: int = 100,
    *,
    clock_ms: int = 0,
    held: dict[TenantId, int] | None = None,
    blocked: set[LineKey] | None = None,
) -> list[Candidate]:
    return queue.take(roomy, held or {}, clock_ms, limit, blocked or set())


def numbers(candidates: Iterable[Candidate]) -> list[int]:
    return [int(c.task.id) for c in candidates]


def test_higher_priority_goes_first_whatever_its_age() -> None:
    queue = queue_of(task(1, priority=10), task(2, priority=90), task(3, priority=50))
    assert numbers(take(queue)) == [2, 3, 1]


def test_equal_priorities_of_one_tenant_go_by_age_across_classes() -> None:
    queue = queue_of(task(3, class_id=1), task(1, class_id=2), task(2, class_id=3))
    assert numbers(take(queue)) == [1, 2, 3]


@pytest.mark.parametrize(("waited_ms", "first"), [(AGEING_MS - 1, 2), (AGEING_MS, 1)])
def test_a_step_of_waiting_is_worth_a_step_of_priority(waited_ms: int, first: int) -> None:
    old = task(1, priority=49, created_ms=0)
    new = task(2, priority=50, created_ms=waited_ms)
    # Level at the step; then age decides.
    assert numbers(take(queue_of(old, new), clock_ms=waited_ms))[0] == first


def test_the_lowest_task_passes_the_highest_newcomers_in_the_end() -> None:
    after_ms = 101 * AGEING_MS
    queue = queue_of(task(1, priority=0), task(2, priority=100, created_ms=after_ms))
    assert numbers(take(queue, clock_ms=after_ms)) == [1, 2]


def test_the_tenant_that_holds_least_comes_first_and_then_they_alternate() -> None:
    queue = queue_of(
        *(task(n, tenant=T1) for n in (1, 2, 3)), *(task(n, tenant=T2) for n in (4, 5, 6))
    )
    assert numbers(take(queue, held={T1: 1})) == [4, 1, 5, 2, 6, 3]


def test_a_tenant_with_many_classes_gets_no_more_than_one_with_few() -> None:
    many = [task(n, tenant=T1, class_id=n) for n in (1, 2, 3, 4)]
    few = [task(n, tenant=T2, class_id=9) for n in (5, 6)]
    assert numbers(take(queue_of(*many, *few), 4)) == [1, 5, 2, 6]


def test_priority_outweighs_fairness() -> None:
    queue = queue_of(task(1, tenant=T1, priority=60), task(2, tenant=T2, priority=50))
    assert numbers(take(queue, held={T1: 1_000})) == [1, 2]


@pytest.mark.parametrize(
    "order", [(5, 1, 3, 2, 4), (1, 2, 3, 4, 5), (5, 4, 3, 2, 1), (2, 3, 1, 5, 4)]
)
def test_a_line_is_in_order_of_age_however_its_tasks_came(order: tuple[int, ...]) -> None:
    assert numbers(take(queue_of(*map(task, order)))) == [1, 2, 3, 4, 5]


def test_tasks_of_a_lost_agent_go_before_all_younger_ones() -> None:
    queue = queue_of(*(task(n) for n in range(10, 20)))
    for number in (3, 4, 5, 12_000, 6):
        queue.add(task(number))
    assert numbers(take(queue)) == [3, 4, 5, 6, *range(10, 20), 12_000]


def test_no_more_is_offered_than_a_line_can_find_places_for() -> None:
    queue = queue_of(task(1, class_id=1), task(2, class_id=1), task(3, class_id=2))
    places = {1: 1, 2: 5}
    taken = queue.take(lambda line: (places[line.key[2]], line.key[2]), {}, 0, 10, set())
    assert numbers(taken) == [1, 3]
    assert len(queue) == 1


def test_a_line_without_room_or_blocked_is_passed_over() -> None:
    queue = queue_of(task(1, class_id=1), task(2, class_id=2), task(3, class_id=3))
    taken = queue.take(
        lambda line: (0 if line.key[2] == 1 else 1, line.key[2]), {}, 0, 10, {(T1, 50, 2)}
    )
    assert numbers(taken) == [3]


def test_the_class_that_a_line_is_placed_as_is_handed_on() -> None:
    taken = queue_of(task(1, class_id=4)).take(lambda _: (1, 7), {}, 0, 10, set())
    assert [c.class_id for c in taken] == [7]


def test_the_limit_holds_and_the_rest_stays() -> None:
    queue = queue_of(*(task(n) for n in range(1, 8)))
    assert numbers(take(queue, 3)) == [1, 2, 3]
    assert len(queue) == 4
    assert numbers(take(queue)) == [4, 5, 6, 7]


def test_tasks_put_back_stand_where_they_stood() -> None:
    queue = queue_of(*(task(n) for n in (1, 2, 3, 4)))
    queue.add(task(0))
    taken = take(queue, 3)
    queue.put_back([taken[0], taken[2]])
    assert len(queue) == 4
    assert numbers(take(queue)) == [0, 2, 3, 4]


def test_putting_back_revives_a_line_that_had_become_empty() -> None:
    queue = queue_of(task(1))
    taken = take(queue)
    assert not list(queue.lines())
    queue.put_back(taken)
    assert len(queue) == 1
    assert all(t.task.queued for t in taken)
    assert numbers(take(queue)) == [1]


def test_a_discarded_task_is_never_offered_and_twice_is_once() -> None:
    middle = task(2)
    queue = queue_of(task(1), middle, task(3))
    queue.discard(middle)
    queue.discard(middle)
    assert len(queue) == 2
    assert numbers(take(queue)) == [1, 3]


def test_a_line_of_gaps_is_rebuilt() -> None:
    tasks = [task(n) for n in range(1000)]
    queue = queue_of(*tasks)
    for one in tasks[1:-1]:
        queue.discard(one)
    (line,) = queue.lines()
    assert len(line._row) <= 2 * 2 + 16 + 1
    assert numbers(take(queue)) == [0, 999]


def test_position_counts_older_and_more_urgent_tasks() -> None:
    low, late = task(1, priority=10), task(4)
    queue = queue_of(low, task(2), task(3, class_id=1), late)
    assert queue.position(late, {}, 0) == 3
    assert queue.position(low, {}, 0) == 4
    queue.discard(late)
    assert queue.position(late, {}, 0) == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_history_leaves_each_task_once_and_in_order(data: st.DataObject) -> None:
    queue = WaitingQueue()
    inside: dict[int, OpenTask] = {}
    fresh = iter(data.draw(st.lists(st.integers(0, 99), unique=True, max_size=30)))
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(("add", "add", "discard", "take", "put_back")))
        if action == "add" and (number := next(fresh, None)) is not None:
            inside[number] = task(number, class_id=number % 2)
            queue.add(inside[number])
        elif action == "discard" and inside:
            queue.discard(inside.pop(data.draw(st.sampled_from(sorted(inside)))))
        elif action in ("take", "put_back"):
            taken = take(queue, data.draw(st.integers(1, 5)))
            assert numbers(taken) == sorted(inside)[: len(taken)]
            back = [c for c in taken if action == "put_back" and data.draw(st.booleans())]
            queue.put_back(back)
            for one in taken:
                if one not in back:
                    del inside[int(one.task.id)]
        assert len(queue) == len(inside) == sum(line.count for line in queue.lines())
    assert numbers(take(queue, 1000)) == sorted(inside)
