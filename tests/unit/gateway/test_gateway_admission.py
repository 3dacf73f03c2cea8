"""Submissions are bounded in bytes, and large ones are turned away while the leader is full."""

from __future__ import annotations

import gc
import weakref

import pytest

from muster.domain.errors import MusterError, Overloaded
from muster_gateway.admission import SMALL_BYTES, Admission

LARGE = SMALL_BYTES + 1


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    return Admission(clock, lambda: 0.5, max_bytes=10 * SMALL_BYTES)


def test_what_is_taken_in_at_once_is_bounded(admission: Admission) -> None:
    with admission.room(6 * SMALL_BYTES):
        with pytest.raises(Overloaded, match=f"{6 * SMALL_BYTES} bytes"):
            admission.room(6 * SMALL_BYTES).__enter__()
        with admission.room(4 * SMALL_BYTES):
            pass
    with admission.room(10 * SMALL_BYTES):
        pass


def test_one_that_is_alone_is_taken_whatever_its_size(admission: Admission) -> None:
    with admission.room(99 * SMALL_BYTES):
        pass


def test_large_bodies_wait_a_moment_after_the_leader_was_full(
    admission: Admission, clock: Clock
) -> None:
    with pytest.raises(Overloaded, match="full"), admission.room(LARGE):
        raise Overloaded("the leader is full")
    with pytest.raises(Overloaded, match="as many tasks as it takes"):
        admission.room(LARGE).__enter__()
    with admission.room(SMALL_BYTES):
        pass
    clock.now_s += 1.0
    with admission.room(LARGE):
        pass


def test_the_time_to_come_back_grows_with_the_crowd_and_shrinks_again(
    admission: Admission, clock: Clock
) -> None:
    def refusal() -> float:
        with pytest.raises(Overloaded) as caught, admission.room(LARGE):
            raise Overloaded("full", retry_after_s=1.0)
        return caught.value.retry_after_s

    pauses = [refusal() for _ in range(400)]
    assert 1.0 <= pauses[0] < 3.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30.0
    clock.now_s += 5.0
    with admission.room(LARGE):
        pass
    assert refusal() < 3.0


def test_room_is_given_back_whatever_happens(admission: Admission, clock: Clock) -> None:
    for error in (Overloaded("full"), MusterError("other"), ValueError("bug")):
        clock.now_s += 5.0
        with pytest.raises(type(error)), admission.room(10 * SMALL_BYTES):
            raise error
    clock.now_s += 5.0
    with admission.room(SMALL_BYTES), admission.room(SMALL_BYTES):
        pass


def test_a_refusal_leaves_no_ring_behind(admission: Admission) -> None:
    """A gateway's collector runs rarely: a ring would keep the body that was refused."""
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(Overloaded) as caught, admission.room(LARGE):
            raise Overloaded("full")
        gone = weakref.ref(caught.value)
        del caught
        assert gone() is None
    finally:
        gc.enable()
