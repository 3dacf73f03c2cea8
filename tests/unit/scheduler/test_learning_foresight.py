"""What a leader does with predictions: t_ij, exploring, corrections, remaining times, starts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster_scheduler.learning.attempts import AgentFeatures, Attempt, TaskFeatures
from muster_scheduler.learning.estimates import Quantiles, declared, expected_starts
from muster_scheduler.learning.foresight import Foresight
from muster_scheduler.learning.training import Training, train

AGENTS = [AgentFeatures(f"a{index}") for index in range(3)]
SPEEDS = (1.0, 2.0, 4.0)


def task(work_s: float) -> TaskFeatures:
    return TaskFeatures("chat", work_s, 10)


def feed(foresight: Foresight, count: int, agents: tuple[int, ...], seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        work_s, row = float(rng.uniform(1, 20)), int(rng.choice(agents))
        run_s = work_s / SPEEDS[row] * float(np.exp(rng.normal(0, 0.05)))
        foresight.observe([Attempt(task(work_s), AGENTS[row], run_s)])


def knowing(count: int, agents: tuple[int, ...] = (0, 1, 2), *, explores: bool = True) -> Foresight:
    foresight = Foresight(explores=explores)
    foresight.set_agents(AGENTS)
    feed(foresight, count, agents)
    return foresight


def test_without_attempts_the_declared_estimate_is_all_there_is() -> None:
    foresight = knowing(0)
    times = foresight.response_s([task(3.0), TaskFeatures("chat")], None)
    assert times.tolist() == [[3.0] * 3, [1.0] * 3]
    assert foresight.quantiles(task(3.0), AGENTS[0]) == declared(3.0)


def test_a_few_attempts_tell_the_agents_apart() -> None:
    times = knowing(60).response_s([task(8.0)], np.zeros(3))
    assert times[0] == pytest.approx([8.0, 4.0, 2.0], rel=0.2)


def test_an_agent_hardly_tried_counts_as_fast_as_the_fastest() -> None:
    times = knowing(60, (0, 1)).response_s([task(8.0)], None)[0]
    assert times[2] == pytest.approx(times[1], rel=1e-6)
    shy = knowing(60, (0, 1), explores=False).response_s([task(8.0)], None)[0]
    assert shy[1] < shy[2] < shy[0]


def test_an_agent_that_becomes_slow_is_seen_before_the_next_training() -> None:
    foresight = knowing(140)
    before = foresight.response_s([task(8.0)], None)[0, 2]
    model = foresight.model
    foresight.observe([Attempt(task(8.0), AGENTS[2], 20.0)] * 25)
    assert foresight.model is model
    assert foresight.response_s([task(8.0)], None)[0, 2] > 2.5 * before


def test_training_is_due_at_200_and_then_in_growing_steps() -> None:
    foresight = knowing(199)
    assert not foresight.training_due()
    feed(foresight, 1, (0,))
    assert foresight.training_due()
    foresight.training_began()
    assert not foresight.training_due()
    feed(foresight, 199, (0, 1, 2))
    assert not foresight.training_due()
    feed(foresight, 1, (0,))
    assert foresight.training_due()


def test_what_is_not_to_be_installed_changes_nothing() -> None:
    foresight = knowing(60)
    model = foresight.model
    assert not foresight.install(Training(None, "it is worse"))
    assert foresight.model is model
    trained = train(foresight.history.window(), None, 1)
    assert foresight.install(trained)
    assert foresight.model is trained.model


spreads = st.lists(st.floats(0.0, 2.0), min_size=4, max_size=4).map(
    lambda steps: Quantiles(tuple(np.exp(np.cumsum(steps)).tolist()), "learned")
)


@given(spreads, st.floats(0, 1e4))
def test_remaining_time_is_above_0_and_finite(quantiles: Quantiles, elapsed_s: float) -> None:
    left = quantiles.remaining_s(elapsed_s)
    assert 0 < left < float("inf")


@given(spreads)
def test_at_the_start_the_median_remains(quantiles: Quantiles) -> None:
    assert quantiles.remaining_s(0.0) == quantiles.median_s
    assert quantiles.timeout_s > quantiles.seconds[-1]
    assert not quantiles.is_straggler(quantiles.median_s)


def test_a_straggler_is_late_and_expected_to_stay_late() -> None:
    quantiles = Quantiles((8.0, 10.0, 12.0, 15.0), "learned")
    assert quantiles.is_straggler(15.1)
    assert not quantiles.is_straggler(14.9)
    assert quantiles.remaining_s(9.0) < 3.0
    assert quantiles.remaining_s(40.0) > quantiles.remaining_s(20.0)
    # One declared number says little of the spread.
    assert not declared(10.0).is_straggler(29.0)


def test_remaining_times_of_many_are_those_of_one() -> None:
    foresight = knowing(150)
    assert foresight.model is not None
    many = foresight.remaining_s(np.array([10.0, 10.0]), np.array([0.0, 9.5]))
    assert many[0] == pytest.approx(10.0, rel=0.01)
    assert 0 < many[1] < 3.0
    assert (foresight.remaining_s(np.full(3, 1.0), np.array([5.0, 50.0, 500.0])) > 0).all()


def test_starts_by_list_scheduling() -> None:
    assert expected_starts([5.0], 2, [3.0, 3.0, 1.0]) == (0.0, 3.0, 5.0)
    assert expected_starts([5.0, 7.0], 2, [1.0]) == (5.0,)
    assert expected_starts([], 1, []) == ()
    with pytest.raises(InvalidInput, match="places"):
        expected_starts([], 0, [1.0])


@given(
    st.lists(st.floats(0, 100), max_size=5),
    st.integers(1, 5),
    st.lists(st.floats(0, 100), max_size=20),
)
def test_starts_never_fall_and_never_pass_all_work(
    busy: list[float], places: int, runs: list[float]
) -> None:
    starts = expected_starts(busy, places, runs)
    assert list(starts) == sorted(starts)
    assert all(start <= sum(busy) + sum(runs) + 1e-9 for start in starts)
