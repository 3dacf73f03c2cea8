"""What the leader tells a strategy of the tasks that are likely to come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator
from tests.unit.scheduler.core_bench import A, Bench

from muster_scheduler.core import placing
from muster_scheduler.core.mix import HALF_LIFE_TASKS, MAX_MIX_CLASSES, ArrivalMix
from muster_scheduler.placement import Policy, TaskBatch, get
from muster_scheduler.placement.plan import Plan
from muster_scheduler.placement.snapshot import Snapshot


def shares(mix: ArrivalMix) -> dict[int, float]:
    found = mix.mix()
    assert found is not None
    return dict(zip(found.class_id.tolist(), found.weight.tolist(), strict=True))


def test_the_mix_is_what_has_come() -> None:
    mix = ArrivalMix()
    assert mix.mix() is None
    for class_id in (7, 7, 3, 7):
        mix.note(class_id)
    assert shares(mix) == pytest.approx({7: 0.75, 3: 0.25}, rel=1e-3)
    assert mix.mix().class_id.tolist() == [7, 3]  # type: ignore[union-attr]


def test_after_a_half_life_an_arrival_counts_half() -> None:
    mix = ArrivalMix()
    mix.note(1)
    for _ in range(HALF_LIFE_TASKS - 1):
        mix.note(2)
    mix.note(3)
    found = shares(mix)
    assert found[1] / found[3] == pytest.approx(0.5, rel=1e-6)


def test_what_came_long_ago_is_forgotten_and_the_weights_stay_finite() -> None:
    mix = ArrivalMix()
    mix.note(1)
    mix._next = 1e100
    for _ in range(3):
        mix.note(2)
    assert shares(mix) == {2: 1.0}
    assert mix._next < 2.0


@given(st.lists(st.integers(0, 2_000), max_size=3_000))
def test_the_mix_is_bounded_and_keeps_what_is_frequent(arrivals: list[int]) -> None:
    mix = ArrivalMix()
    for number, class_id in enumerate(arrivals):
        mix.note(class_id)
        if number % 3 == 0:
            mix.note(-1)
        assert len(mix.classes()) <= 2 * MAX_MIX_CLASSES
    if arrivals:
        found = mix.mix()
        assert found is not None
        assert len(found.class_id) <= MAX_MIX_CLASSES
        assert (found.weight > 0).all()
        assert np.isclose(found.weight.sum(), 1.0)
        assert -1 in found.class_id


@pytest.mark.parametrize(("strategy", "told"), [("fragmentation", True), ("worst_fit", False)])
def test_strategies_are_told_the_mix_that_use_it(
    strategy: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.state.policy = Policy(strategy=strategy)
    seen: list[TaskBatch] = []

    class Spy:
        name = strategy

        def plan(
            self,
            snapshot: Snapshot,
            tasks: TaskBatch,
            policy: Policy,
            now_s: float,
            rng: Generator,
            stop: Callable[[], bool],
            max_steps: int,
        ) -> Plan:
            seen.append(tasks)
            return get(strategy).plan(snapshot, tasks, policy, now_s, rng, stop, max_steps)

    monkeypatch.setattr(placing, "get", lambda _name: Spy())
    bench.join(A)
    tasks = [bench.admit() for _ in range(3)]
    bench.settle()
    assert {t.status.agent for t in tasks} == {A}
    (batch,) = seen
    if told:
        assert batch.mix is not None
        assert batch.mix.class_id.tolist() == [tasks[0].plain_class_id]
    else:
        assert batch.mix is None


def test_classes_of_the_mix_are_kept_when_others_are_forgotten() -> None:
    bench = Bench()
    bench.join(A)
    task = bench.run()
    class_id = task.plain_class_id
    bench.end(task)
    bench.settle()
    assert not bench.state.tasks
    bench.state.classes.forget_all_but(set(bench.state.arrivals.classes()))
    assert bench.state.classes[class_id].skill == "echo"
