"""Which runner takes which attempt, and when runners are made and let go."""

from __future__ import annotations

from muster.agent.events import AttemptKey
from muster.agent.pool import GROW_AFTER_MS, IDLE_MS, LONG_MS, Lane, Retire, Run, RunnerPool, Spawn
from muster.domain.ids import TaskId

SYNC = Lane("sync", exclusive=True, eager=2)
ASYNC = Lane("async:echo", exclusive=False)


def key(n: int) -> AttemptKey:
    return AttemptKey(TaskId(f"t{n}"), 1)


def test_an_exclusive_runner_has_one_attempt_at_a_time() -> None:
    pool = RunnerPool()
    for n in range(3):
        pool.add(key(n), SYNC, 0)
    assert pool.take_actions() == [Spawn(1, SYNC), Spawn(2, SYNC)]
    pool.runner_up(1, 1)
    assert pool.take_actions() == [Run(1, key(0))]
    pool.runner_up(2, 1)
    assert pool.take_actions() == [Run(2, key(1))]
    pool.attempt_left(key(1), 2)
    assert pool.take_actions() == [Run(2, key(2))]
    assert pool.waiting == 0


def test_a_shared_runner_takes_all_attempts_of_its_lane() -> None:
    pool = RunnerPool()
    pool.add(key(1), ASYNC, 0)
    pool.add(key(2), ASYNC, 0)
    assert pool.take_actions() == [Spawn(1, ASYNC)]
    pool.runner_up(1, 1)
    pool.add(key(3), ASYNC, 2)
    assert pool.take_actions() == [Run(1, key(1)), Run(1, key(2)), Run(1, key(3))]
    assert pool.attempts_on(1) == {key(1), key(2), key(3)}


def busy_pool() -> RunnerPool:
    pool = RunnerPool()
    for n in range(6):
        pool.add(key(n), SYNC, 0)
    pool.runner_up(1, 0)
    pool.runner_up(2, 0)
    pool.take_actions()
    return pool


def test_short_attempts_get_no_more_runners_than_cores() -> None:
    pool = busy_pool()
    assert pool.next_wake_ms() == GROW_AFTER_MS
    pool.tick(GROW_AFTER_MS)
    assert pool.take_actions() == []


def test_runners_with_long_attempts_are_replaced_by_new_ones() -> None:
    pool = busy_pool()
    pool.tick(LONG_MS)
    assert pool.take_actions() == [Spawn(3, SYNC), Spawn(4, SYNC)]
    pool.tick(LONG_MS + GROW_AFTER_MS)
    assert pool.take_actions() == []  # two are on their way and two are long
    pool.runner_up(3, 50)
    pool.runner_up(4, 50)
    assert pool.take_actions() == [Run(3, key(2)), Run(4, key(3))]


def test_an_idle_runner_is_let_go_and_the_attempt_after_it_gets_a_new_one() -> None:
    pool = RunnerPool()
    pool.add(key(1), SYNC, 0)
    pool.runner_up(1, 0)
    pool.attempt_left(key(1), 10)
    pool.take_actions()
    assert pool.next_wake_ms() == 10 + IDLE_MS
    pool.tick(10 + IDLE_MS)
    assert pool.take_actions() == [Retire(1)]
    pool.add(key(2), SYNC, 10 + IDLE_MS)
    assert pool.take_actions() == [Spawn(2, SYNC)]
    assert pool.runner_gone(1, 10 + IDLE_MS) == frozenset()


def test_a_closed_runner_takes_nothing_more() -> None:
    pool = RunnerPool()
    pool.add(key(1), ASYNC, 0)
    pool.runner_up(1, 0)
    pool.close(1, 1)
    pool.take_actions()
    pool.add(key(2), ASYNC, 2)
    assert pool.take_actions() == [Spawn(2, ASYNC)]
    assert pool.runner_gone(1, 3) == {key(1)}
    assert pool.runner_of(key(1)) is None


def test_a_waiting_attempt_can_be_withdrawn_and_a_running_one_cannot() -> None:
    pool = busy_pool()
    assert pool.withdraw_if_waiting(key(5))
    assert not pool.withdraw_if_waiting(key(0))
    assert pool.waiting == 3


def test_a_runner_that_dies_before_it_is_up_is_replaced() -> None:
    pool = RunnerPool()
    pool.add(key(1), ASYNC, 0)
    pool.take_actions()
    assert pool.runner_gone(1, 1) == frozenset()
    assert pool.take_actions() == [Spawn(2, ASYNC)]
    pool.runner_up(1, 2)  # late news of the dead one
    assert pool.take_actions() == []


def test_where_no_runner_can_be_made_the_work_is_given_back_one_by_one() -> None:
    pool = RunnerPool()
    for n in range(2):
        pool.add(key(n), ASYNC, 0)
    assert pool.spawn_failed(1, 1) == key(0)
    assert pool.spawn_failed(2, 2) == key(1)
    assert pool.spawn_failed(3, 3) is None if pool.size else True
    assert pool.waiting == 0


def lane(*indices: int, name: str = "sync") -> Lane:
    return Lane(f"{name}@{indices}", exclusive=True, eager=1000, devices=(("gpu", indices),))


def test_runners_serve_one_set_of_devices_only() -> None:
    pool = RunnerPool()
    pool.add(key(1), lane(0), 0)
    pool.add(key(2), lane(0), 0)
    pool.add(key(3), lane(1, 2), 0)
    assert pool.take_actions() == [Spawn(1, lane(0)), Spawn(2, lane(0)), Spawn(3, lane(1, 2))]
    for runner in (1, 2, 3):
        pool.runner_up(runner, 1)
    assert pool.take_actions() == [Run(1, key(1)), Run(2, key(2)), Run(3, key(3))]
    pool.attempt_left(key(1), 2)
    pool.add(key(4), lane(0), 3)
    assert pool.take_actions() == [Run(1, key(4))]


def test_an_idle_runner_makes_room_on_a_device_that_another_lane_needs() -> None:
    pool = RunnerPool()
    for n, wanted in enumerate((lane(0), lane(1), SYNC)):
        pool.add(key(n), wanted, 0)
        pool.runner_up(n + 1, 0)
        pool.attempt_left(key(n), 1)
    pool.take_actions()
    pool.add(key(5), lane(0, 2), 2)
    assert pool.take_actions() == [Retire(1), Spawn(4, lane(0, 2))]


def test_sets_of_devices_that_nobody_uses_are_forgotten() -> None:
    pool = RunnerPool()
    for n in range(50):
        pool.add(key(n), lane(n), 0)
        pool.runner_up(n + 1, 0)
        pool.attempt_left(key(n), 0)
        pool.close(n + 1, 0)
        pool.runner_gone(n + 1, 0)
    assert not pool._lanes
    pool.add(key(99), lane(3), 0)
    assert pool.spawn_failed(51, 0) == key(99)
    assert not pool.waiting
