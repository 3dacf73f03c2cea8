"""The health of agents: what lowers it, what does not, and how it is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.ids import AgentId
from muster_scheduler.core.health import (
    ABSOLVED_POINTS,
    FLOOR,
    HALF_LIFE_MS,
    MAX_POINTS,
    MAX_SKILLS_COUNTED,
    MAX_SKILLS_OF_AGENT,
    POINTS,
    Blame,
    HealthBook,
    PlainTrust,
    Sentence,
    highest_rate,
)

A, B, C = AgentId("a"), AgentId("b"), AgentId("c")
ALL = (A, B, C)


def book_with(*blames: Blame, now_ms: int = 0) -> HealthBook:
    book = HealthBook()
    for blame in blames:
        book.blame(A, blame, now_ms)
    return book


def test_nothing_is_known_against_a_stranger() -> None:
    book = HealthBook()
    assert book.health(A, 5) == 1.0
    assert book.reasons(A, 5) == []
    assert A not in book


@pytest.mark.parametrize("blame", list(Blame))
def test_each_blame_costs_its_points_and_half_is_forgotten_in_a_half_life(blame: Blame) -> None:
    book = book_with(blame)
    assert book.points(A, 0) == pytest.approx(POINTS[blame])
    assert book.points(A, HALF_LIFE_MS) == pytest.approx(POINTS[blame] / 2)
    assert book.health(B, 0) == 1.0


def test_ten_deaths_in_short_order_are_under_the_floor_and_three_are_not() -> None:
    assert book_with(*[Blame.DEATH] * 10).health(A, 60_000) < FLOOR
    assert book_with(*[Blame.DEATH] * 3).health(A, 0) > FLOOR


def test_the_words_name_what_was_counted() -> None:
    book = book_with(Blame.DEATH, Blame.DEATH, Blame.UNSTARTED)
    assert book.reasons(A, 0) == ["2.0 deaths", "1.0 times it did not start what it was given"]


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Blame)), st.integers(0, 10 * HALF_LIFE_MS)), max_size=40
    ),
    st.integers(0, 20 * HALF_LIFE_MS),
)
def test_health_is_bounded_and_time_alone_only_restores_it(
    blames: list[tuple[Blame, int]], later_ms: int
) -> None:
    book, now_ms = HealthBook(), 0
    for blame, pause_ms in blames:
        now_ms += pause_ms
        before = book.points(A, now_ms)
        book.blame(A, blame, now_ms)
        assert before <= book.points(A, now_ms) <= MAX_POINTS
    assert 0.0 < book.health(A, now_ms) <= 1.0
    assert book.points(A, now_ms + later_ms) <= book.points(A, now_ms)
    assert book.health(A, now_ms + 60 * HALF_LIFE_MS) == 1.0


@given(st.lists(st.tuples(st.sampled_from(ALL), st.booleans()), max_size=300))
@settings(max_examples=50)
def test_a_skill_that_fails_everywhere_blames_nobody(ended: list[tuple[AgentId, bool]]) -> None:
    book = HealthBook()
    for number, (agent, other) in enumerate(ended):
        book.tried(agent, "broken", True, number * 100)
        # Others succeed and must not be blamed for standing beside it.
        if other:
            book.tried(agent, "fine", False, number * 100)
    now_ms = len(ended) * 100
    assert [book.health(agent, now_ms) for agent in ALL] == [1.0, 1.0, 1.0]


@given(st.integers(1, 300), st.lists(st.booleans(), max_size=50))
@settings(max_examples=50)
def test_who_runs_a_skill_alone_is_not_blamed_for_it(count: int, failed: list[bool]) -> None:
    book = HealthBook()
    for one in (*failed, *[True] * count):
        book.tried(A, "mine alone", one, 0)
    assert book.points(A, 0) == 0.0


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.9))
@settings(max_examples=40, deadline=None)
def test_chance_alone_quarantines_nobody(seed: int, rate: float) -> None:
    import random

    rng = random.Random(seed)
    book = HealthBook()
    for _ in range(600):
        book.tried(rng.choice(ALL), "flaky", rng.random() < rate, 0)
    assert all(book.health(agent, 0) >= FLOOR for agent in ALL)


def test_an_agent_that_fails_what_succeeds_elsewhere_falls_under_the_floor() -> None:
    book = HealthBook()
    for _ in range(40):
        book.tried(B, "echo", False, 0)
        book.tried(C, "echo", False, 0)
    for _ in range(5):
        book.tried(A, "echo", True, 0)
    assert FLOOR < book.health(A, 0) < 1.0
    for _ in range(10):
        book.tried(A, "echo", True, 0)
    assert book.health(A, 0) < FLOOR
    assert book.reasons(A, 0) == ["skill echo failed 15 of 15 times here, 0 of 80 elsewhere"]
    assert book.health(B, 0) == book.health(C, 0) == 1.0


def test_absolution_leaves_little_and_forgets_the_failures_of_tasks() -> None:
    book = book_with(*[Blame.DEATH] * 40)
    for _ in range(20):
        book.tried(B, "echo", False, 0)
        book.tried(A, "echo", True, 0)
    book.condemn(A, Sentence(1_000))
    book.absolve(A, 2_000)
    assert book.points(A, 2_000) <= ABSOLVED_POINTS + 1e-9
    sentence = book.sentence(A)
    assert sentence is not None
    assert sentence.served
    # What it had failed counts neither for it nor as others'.
    book.tried(A, "echo", False, 2_000)
    assert all("echo" not in reason for reason in book.reasons(B, 2_000))


def test_what_is_forgotten_leaves_nothing_behind() -> None:
    book = book_with(Blame.DEATH)
    book.tried(A, "echo", True, 0)
    book.condemn(A, Sentence(1_000, served=True))
    for round_ in range(1, 60):
        book.prune(round_ * HALF_LIFE_MS, HALF_LIFE_MS)
    assert A not in book
    assert not book._totals


def test_the_worst_is_forgotten_in_the_same_time_however_often_it_happened() -> None:
    once, often = book_with(*[Blame.UNSTARTED] * 6), book_with(*[Blame.UNSTARTED] * 100)
    for halves in range(4):
        now_ms = halves * HALF_LIFE_MS
        assert often.points(A, now_ms) == pytest.approx(once.points(A, now_ms))


def test_long_idleness_overflows_nothing() -> None:
    book = book_with(Blame.DEATH)
    later_ms = 100_000 * HALF_LIFE_MS
    book.blame(A, Blame.DEATH, later_ms)
    assert book.points(A, later_ms) == pytest.approx(POINTS[Blame.DEATH])


@given(
    st.dictionaries(
        st.sampled_from(ALL), st.lists(st.sampled_from(list(Blame)), min_size=1, max_size=9)
    ),
    st.integers(0, HALF_LIFE_MS),
)
def test_the_next_leader_goes_on_with_it(blamed: dict[AgentId, list[Blame]], later_ms: int) -> None:
    book = HealthBook()
    for agent, blames in blamed.items():
        for blame in blames:
            book.blame(agent, blame, 0)
    book.condemn(A, Sentence(77_000, 3))
    heir = HealthBook()
    heir.take_over(book.to_plain(later_ms), later_ms, later_ms)
    for agent in ALL:
        for now_ms in (later_ms, 3 * HALF_LIFE_MS):
            assert heir.points(agent, now_ms) == pytest.approx(book.points(agent, now_ms), abs=0.02)
    assert heir.sentence(A) == Sentence(77_000, 3)


def test_what_another_version_wrote_is_taken_as_far_as_it_is_understood() -> None:
    book = HealthBook()
    numbers = {"deaths": 2.0, "future": 9.0, Blame.REFUSED.value: float("inf")}
    book.take_over({"a": PlainTrust(numbers)}, 5, 5)
    assert book.points(A, 5) == pytest.approx(2 * POINTS[Blame.DEATH])


def test_skills_are_counted_within_bounds() -> None:
    book = HealthBook()
    for number in range(MAX_SKILLS_OF_AGENT + 10):
        book.tried(A, f"s{number}", True, 0)
    assert len(book._totals) == MAX_SKILLS_OF_AGENT
    for agent in range(MAX_SKILLS_COUNTED // MAX_SKILLS_OF_AGENT + 2):
        for number in range(MAX_SKILLS_OF_AGENT):
            book.tried(AgentId(f"x{agent}"), f"x{agent}.{number}", True, 0)
    assert len(book._totals) == MAX_SKILLS_COUNTED


@given(st.floats(0.01, 1e6), st.floats(0, 1))
def test_the_highest_rate_is_a_rate_above_what_was_seen(tried: float, share: float) -> None:
    rate = highest_rate(tried, tried * share)
    assert share - 1e-9 <= rate <= 1.0
    assert highest_rate(0.0, 0.0) == 1.0
