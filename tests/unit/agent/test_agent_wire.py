"""Frames between runtime, zygote and runners."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.agent import wire


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 50))
def test_frames_survive_any_cutting(outputs: list[bytes], step: int) -> None:
    sent = [wire.RunDone(n + 1, output) for n, output in enumerate(outputs)]
    stream = wire.frame(sent) + wire.frame([wire.RunStopped(9)])
    buffer = wire.FrameBuffer()
    got: list[object] = []
    for start in range(0, len(stream), step):
        for body in buffer.feed(stream[start : start + step]):
            got += wire.from_runner.decode(body)
    assert got == [*sent, wire.RunStopped(9)]


def test_an_impossible_length_is_a_broken_peer() -> None:
    with pytest.raises(wire.BrokenPeer):
        wire.FrameBuffer().feed(b"\xff\xff\xff\xff")


def test_what_does_not_fit_into_one_frame_becomes_several() -> None:
    big = b"x" * (wire.MAX_FRAME_BYTES // 2)
    stream = wire.frame([wire.RunDone(n, big) for n in range(3)])
    bodies = wire.FrameBuffer().feed(stream)
    assert len(bodies) > 1
    got = [message for body in bodies for message in wire.from_runner.decode(body)]
    assert got == [wire.RunDone(n, big) for n in range(3)]
