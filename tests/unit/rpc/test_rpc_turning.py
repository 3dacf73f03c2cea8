"""Which address is turned to: one that is merely slow is not left for one that failed lately."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muster.rpc.turning import BAD_FOR_S, Turning

A, B, C = "a:1", "b:1", "c:1"


def test_a_first_deadline_turns_to_the_next_address() -> None:
    assert Turning().after_failure([A, B], A, 0.0, slow=True) == B


def test_a_slow_answer_does_not_turn_to_the_address_that_just_failed() -> None:
    turning = Turning()
    assert turning.after_failure([A, B], A, 0.0, slow=True) == B
    turning.answered(B, 0.5)
    assert turning.after_failure([A, B], B, BAD_FOR_S - 0.1, slow=True) == B
    assert turning.after_failure([A, B], B, BAD_FOR_S, slow=True) == A


def test_a_stopped_address_that_was_tried_again_is_left_for_the_one_that_answers() -> None:
    turning = Turning()
    turning.after_failure([A, B], A, 0.0, slow=True)
    turning.answered(B, 9.0)
    assert turning.after_failure([A, B], B, 10.0, slow=True) == A
    # B failed a second ago too, but it has answered since A last did.
    assert turning.after_failure([A, B], A, 11.0, slow=True) == B


def test_one_that_is_away_is_always_turned_from() -> None:
    turning = Turning()
    for now_s, (failed, turned_to) in enumerate([(A, B), (B, A), (A, B)]):
        assert turning.after_failure([A, B], failed, float(now_s), slow=False) == turned_to


def test_of_three_the_one_that_did_not_fail_is_next() -> None:
    turning = Turning()
    assert turning.after_failure([A, B, C], B, 0.0, slow=True) == C
    assert turning.after_failure([A, B, C], A, 1.0, slow=False) == C
    assert turning.after_failure([A, B, C], C, 2.0, slow=True) == C


def test_an_address_alone_is_kept() -> None:
    for slow in (True, False):
        assert Turning().after_failure([A], A, 0.0, slow=slow) == A


@given(
    st.lists(
        st.tuples(st.floats(0.0, 4.0), st.sampled_from(["answer", "slow", "away"])), max_size=60
    )
)
def test_no_deadline_turns_to_a_fresh_failure_that_has_not_answered_since(
    steps: list[tuple[float, str]],
) -> None:
    turning, use, now_s = Turning(), A, 0.0
    failed_s: dict[str, float] = {}
    answered_s: dict[str, float] = {}
    for passed_s, what in steps:
        now_s += passed_s
        if what == "answer":
            turning.answered(use, now_s)
            answered_s[use] = now_s
            continue
        before = use
        use = turning.after_failure([A, B, C], use, now_s, slow=what == "slow")
        if what == "slow" and use != before:
            fresh = now_s - failed_s.get(use, -1e9) < BAD_FOR_S
            assert not fresh or answered_s.get(use, -1e9) > answered_s.get(before, -1e9)
        if what == "away":
            assert use != before
        failed_s[before] = now_s
