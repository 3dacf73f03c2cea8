"""Run-time models: what they learn, when they are trusted and installed, and their blobs."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster_scheduler.learning.attempts import (
    MAX_FIELDS,
    AgentFeatures,
    Attempt,
    History,
    TaskFeatures,
    task_features,
)
from muster_scheduler.learning.blob import MAGIC, CorruptModel, from_blob, to_blob
from muster_scheduler.learning.effects import fit_effects
from muster_scheduler.learning.evaluation import LEVELS
from muster_scheduler.learning.forest import fit_forest, from_sklearn
from muster_scheduler.learning.model import RuntimeModel
from muster_scheduler.learning.training import evaluate, fit_ridge, train

SPEEDS = (1.0, 2.0, 4.0, 8.0)


def agent(index: int, load: float = 0.0) -> AgentFeatures:
    return AgentFeatures(f"a{index}", (), (4000.0, 8e9, 1e9, 4.0), load)


def attempts(
    count: int, seed: int = 1, noise: float = 0.05, slowed_by_load: float = 0.0
) -> list[Attempt]:
    """Work is the tokens, over the agent's speed; loaded agents may be slower above half load."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens, index = float(rng.integers(10, 1000)), int(rng.integers(len(SPEEDS)))
        load = float(rng.random())
        run_s = tokens / 100 / SPEEDS[index] * np.exp(rng.normal(0, noise))
        run_s *= 1 + slowed_by_load * (load > 0.5)
        task = TaskFeatures("chat", 0.0, 100, (("tokens", tokens),))
        found.append(Attempt(task, agent(index, load), float(run_s)))
    return found


@cache
def boosted() -> RuntimeModel:
    model = train(attempts(600, slowed_by_load=1.0), None, seed=1).model
    assert model is not None
    return model


def test_features_are_the_finite_numbers_and_lengths_of_an_input() -> None:
    found = task_features(
        "s", b'{"n": 3, "b": true, "t": "four", "l": [1], "o": {}, "x": null}', 2.0
    )
    assert found.fields == (("l.length", 1.0), ("n", 3.0), ("t.length", 4.0))
    many = b"{" + b",".join(b'"k%03d": 1' % i for i in range(99)) + b"}"
    assert len(task_features("s", many, 0.0).fields) == MAX_FIELDS
    assert task_features("s", b"[1, 2]", 0.0).fields == ()
    assert task_features("s", b"no json", 0.0).fields == ()


@pytest.mark.parametrize("run_s", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_run_times_are_refused(run_s: float) -> None:
    with pytest.raises(InvalidInput, match="run_s"):
        Attempt(TaskFeatures("s"), agent(0), run_s)


def test_history_keeps_the_newest() -> None:
    history = History(limit=3)
    history.add(attempts(5))
    assert history.window() == tuple(attempts(5)[-3:])
    assert history.seen == 5


def test_the_linear_part_finds_the_speeds() -> None:
    window = attempts(150)
    model = fit_ridge(window[:120], window[120:], version=1)
    effects = [model.linear.effects.of("chat", agent(i)) for i in range(4)]
    ratios = np.exp(np.array(effects[0]) - effects)
    assert ratios == pytest.approx(SPEEDS, rel=0.1)
    assert model.evaluation.error < 0.1


def test_labels_speak_for_an_agent_that_was_never_met() -> None:
    fast = [AgentFeatures(f"f{i}", (("disk", "ssd"),)) for i in range(5)]
    slow = [AgentFeatures(f"s{i}", (("disk", "hdd"),)) for i in range(5)]
    agents = (fast + slow) * 20
    residuals = np.array(([-1.0] * 5 + [1.0] * 5) * 20)
    effects = fit_effects(["s"] * len(agents), agents, residuals)
    assert effects.of("s", AgentFeatures("new", (("disk", "ssd"),))) < -0.5
    assert effects.of("s", AgentFeatures("new", (("disk", "hdd"),))) > 0.5
    assert effects.of("s", AgentFeatures("new")) == 0.0


def test_trees_learn_what_lines_cannot() -> None:
    model = boosted()
    assert model.kind == "boosted"
    fresh = attempts(200, seed=2, slowed_by_load=1.0)
    ridge = fit_ridge(attempts(480, slowed_by_load=1.0), fresh, 1)
    assert evaluate(model, fresh).loss < 0.6 * ridge.evaluation.loss


def test_quantiles_rise_and_cover() -> None:
    fresh = attempts(300, seed=3, slowed_by_load=1.0)
    log_s = boosted().of_attempts(fresh)
    assert log_s.shape == (len(LEVELS), 300)
    assert (np.diff(log_s, axis=0) >= 0).all()
    assert 0.75 < evaluate(boosted(), fresh).covered_90 <= 1.0


def test_the_grid_of_medians_agrees_with_single_attempts() -> None:
    model, agents = boosted(), [agent(i, 0.25 * i) for i in range(4)]
    tasks = [attempt.task for attempt in attempts(5, seed=4)]
    from muster_scheduler.learning.model import agent_columns

    effects = {"chat": model.linear.effects.row("chat", agents)}
    grid = model.medians(tasks, agent_columns(agents), effects)
    single = model.medians_of([Attempt(task, one, 1.0) for task in tasks for one in agents])
    assert grid.ravel() == pytest.approx(single)


def test_training_is_deterministic_and_few_attempts_make_no_model() -> None:
    assert to_blob(boosted()) == to_blob(
        train(attempts(600, slowed_by_load=1.0), None, seed=1).model or boosted()
    )
    training = train(attempts(5), None, seed=1)
    assert training.model is None
    assert "too few" in training.why


def test_a_worse_model_is_not_installed() -> None:
    good = train(attempts(150), None, seed=1).model
    assert good is not None
    # The older part of the window misleads; the newest is as it always was.
    misled = attempts(100, seed=5, noise=3.0) + attempts(25, seed=6)
    training = train(misled, good, seed=1)
    assert training.model is None
    assert "worse than version 1" in training.why
    assert training.candidate is not None
    assert training.predecessor is not None
    assert training.candidate.loss > training.predecessor.loss
    better = train(attempts(300, seed=7), good, seed=1).model
    assert better is None or better.version == 2


def test_unknown_and_badly_predicted_skills_are_not_trusted() -> None:
    model = train(attempts(150), None, seed=1).model
    wild = train(attempts(150, noise=4.0), None, seed=1).model
    assert model is not None
    assert wild is not None
    assert model.is_trusted("chat")
    assert not model.is_trusted("other")
    assert not wild.is_trusted("chat")


def test_a_model_that_loses_to_the_declared_estimates_is_not_trusted() -> None:
    rng = np.random.default_rng(1)
    window: list[Attempt] = []
    for _ in range(100):
        run_s = float(np.exp(rng.normal(0, 1)))
        # In the older part the estimate says nothing; of late it is exact.
        declared = float(np.exp(rng.normal(0, 1))) if len(window) < 80 else run_s
        window.append(Attempt(TaskFeatures("s", declared), agent(0), run_s))
    model = train(window, None, seed=1).model
    assert model is not None
    assert not model.is_trusted("s")


def test_our_walk_through_trees_is_scikit_learns() -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 4))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    target = np.nansum(rows, axis=1) + np.where(rows[:, 0] > 0, 3.0, 0.0)
    theirs = HistGradientBoostingRegressor(max_iter=20, max_leaf_nodes=15).fit(rows, target)
    ours = from_sklearn(theirs)
    fresh = rng.normal(size=(100, 4))
    fresh[rng.random(fresh.shape) < 0.2] = np.nan
    assert ours.predict(fresh) == pytest.approx(theirs.predict(fresh), abs=1e-9)
    assert ours.problem(columns=4) is None
    assert ours.problem(columns=1) is not None


def test_a_blob_brings_the_model_back() -> None:
    back = from_blob(to_blob(boosted()))
    assert isinstance(back, RuntimeModel)
    fresh = attempts(20, seed=8)
    assert (back.of_attempts(fresh) == boosted().of_attempts(fresh)).all()
    assert back.evaluation == boosted().evaluation
    assert (back.version, back.kind, back.trained) == (1, "boosted", 480)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_or_cut_blob_is_corrupt(data: st.DataObject) -> None:
    blob = bytearray(to_blob(boosted()))
    at = data.draw(st.integers(0, len(blob) - 1))
    if data.draw(st.booleans()):
        blob[at] ^= data.draw(st.integers(1, 255))
    else:
        del blob[at:]
    found = from_blob(bytes(blob))
    assert isinstance(found, CorruptModel)
    assert found.why


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(noise: bytes) -> None:
    assert isinstance(from_blob(noise), CorruptModel)
    assert isinstance(from_blob(sealed(noise)), CorruptModel)


def sealed(body: bytes) -> bytes:
    return MAGIC + hashlib.sha256(body).digest() + body


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("left", 0, "outside the tree, or back"),
        ("right", 9999, "outside the tree, or back"),
        ("feature", 99, "column that there is not"),
        ("value", float("nan"), "no finite number"),
        ("threshold", float("nan"), "no number"),
    ],
)
def test_trees_that_make_no_sense_are_refused_though_their_digest_fits(
    name: str, value: float, why: str
) -> None:
    model = from_blob(to_blob(boosted()))
    assert isinstance(model, RuntimeModel)
    # The second node's child pointing to the root would be walked for ever.
    getattr(model.forests[1], name)[0, 1] = value
    found = from_blob(to_blob(model))
    assert isinstance(found, CorruptModel)
    assert why in found.why


def test_heads_that_make_no_sense_are_refused_though_their_digest_fits() -> None:
    body = to_blob(boosted())[len(MAGIC) + 32 :]
    length = int.from_bytes(body[:8], "little")
    head, trees = body[8 : 8 + length], body[8 + length :]
    for old, new, why in [
        (b'"version":1', b'"version":0', "at least 1"),
        (b'"kind":"boosted"', b'"kind":"ridge"', "4 forests"),
        (b'"levels":[0.1', b'"levels":[0.2', "other quantiles"),
        (b'"intercept":', b'"intercept":1e999,"x":', "not understood"),
        (b'"nodes":', b'"nodes":9', "not accepted"),
    ]:
        assert old in head
        changed = head.replace(old, new)
        found = from_blob(sealed(len(changed).to_bytes(8, "little") + changed + trees))
        assert isinstance(found, CorruptModel)
        assert why in found.why


def test_a_column_without_values_hinders_no_training() -> None:
    rows = np.random.default_rng(1).normal(size=(100, 2))
    rows[:, 1] = np.nan
    forest = fit_forest(rows, rows[:, 0], 0.5, 5, 1)
    assert np.isfinite(forest.predict(rows)).all()
