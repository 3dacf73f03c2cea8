"""Virtual time, a network that delays and loses, and parts that die and freeze. All from a seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

Act = Callable[[], None]

# Lines of the trace that a failure shows.
SHOWN_LINES = 150


class SimulationError(AssertionError):
    """An invariant did not hold."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad it is, as probabilities; drawn for each seed so that calm and storm both occur."""

    lost: float
    slow: float
    repeated: float

    @classmethod
    def drawn(cls, rng: random.Random) -> Weather:
        return cls(
            lost=rng.choice((0.0, 0.02, 0.1)),
            slow=rng.choice((0.0, 0.05, 0.2)),
            repeated=rng.choice((0.0, 0.05, 0.2)),
        )


CALM = Weather(0.0, 0.0, 0.0)


class Kernel:
    """The only clock and the only chance of a run."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_ms = 0
        self.weather = Weather.drawn(self.rng)
        self.steps = 0
        self._heap: list[tuple[int, int, Act]] = []
        self._scheduled = 0
        self._trace: list[tuple[int, str, tuple[object, ...]]] = []

    def at(self, delay_ms: float, act: Act) -> None:
        self._scheduled += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, int(delay_ms)), self._scheduled, act))

    def run(self, until: Callable[[], bool], limit_ms: int) -> bool:
        """Steps until `until()`; False when `limit_ms` comes first."""
        while not until():
            if not self._heap or self._heap[0][0] > limit_ms:
                return False
            self.now_ms, _, act = heapq.heappop(self._heap)
            self.steps += 1
            act()
        return True

    def say(self, who: str, *words: object) -> None:
        self._trace.append((self.now_ms, who, words))

    def trace(self) -> str:
        """The end of what happened, for people."""
        lines = [
            f"{at / 1000:9.3f} {who:<8} {' '.join(str(w) for w in words)}"
            for at, who, words in self._trace[-SHOWN_LINES:]
        ]
        return "\n".join(lines)

    # ----------------------------------------------------------------- the network

    def delay_ms(self) -> float:
        """Of one message: a few milliseconds, now and then up to three seconds."""
        if self.rng.random() < self.weather.slow:
            return self.rng.choice((50, 300, 3_000)) * self.rng.random()
        return 1 + 4 * self.rng.random()

    def is_lost(self) -> bool:
        return self.rng.random() < self.weather.lost

    def is_repeated(self) -> bool:
        return self.rng.random() < self.weather.repeated


class Part:
    """Something that runs: it can end for ever, or freeze and go on where it was."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.alive = True
        self.frozen_until_ms = 0
        self.streams: list[Link] = []

    @property
    def frozen(self) -> bool:
        return self.kernel.now_ms < self.frozen_until_ms

    def later(self, delay_ms: float, act: Act) -> None:
        """Does something after a while, unless it has ended by then."""
        self.kernel.at(delay_ms, lambda: self.do(act))

    def do(self, act: Act) -> None:
        """Now, or at the thaw, in order."""
        if not self.alive:
            return
        if self.frozen:
            self.later(self.frozen_until_ms - self.kernel.now_ms, act)
            return
        act()
        self.after_each()

    def after_each(self) -> None:
        """Called after everything that the part has done."""

    def end(self) -> None:
        """It is gone from one moment to the next, and its connections with it."""
        self.alive = False
        for link in self.streams:
            link.cut(f"{self.name} has ended")

    def on_cut(self, link: Link) -> None:
        """It notices that a connection of its is gone."""

    def freeze(self, ms: int) -> None:
        self.say("is frozen for", ms, "ms")
        self.frozen_until_ms = self.kernel.now_ms + ms
        self.kernel.at(ms, lambda: self.do(self.thawed))

    def thawed(self) -> None:
        """First of all after a freeze."""

    def say(self, *words: object) -> None:
        self.kernel.say(self.name, *words)


class Link:
    """A stream between two parts: in order, until it breaks; then nothing more arrives, and each
    end notices in its own time."""

    def __init__(self, kernel: Kernel, one: Part, other: Part) -> None:
        self.open = True
        self._kernel = kernel
        self._ends = (one, other)
        self._last_ms = {one: 0.0, other: 0.0}
        for end in dict.fromkeys((one, other)):
            end.streams = [link for link in end.streams if link.open] + [self]

    def send(self, to: Part, act: Act) -> None:
        kernel = self._kernel
        if not self.open:
            return
        if kernel.is_lost():
            self.cut("the network lost it")
            return
        at_ms = max(self._last_ms[to], kernel.now_ms + kernel.delay_ms())
        self._last_ms[to] = at_ms
        kernel.at(at_ms - kernel.now_ms, lambda: self._deliver(to, act))

    def _deliver(self, to: Part, act: Act) -> None:
        if self.open:
            to.do(act)

    def cut(self, why: str) -> None:
        if not self.open:
            return
        self.open = False
        self._kernel.say("link", " - ".join(end.name for end in self._ends), "is cut:", why)
        for end in dict.fromkeys(self._ends):
            # A half-open connection is noticed after 15 s at the latest.
            notice_ms = self._kernel.rng.choice((5, 500, 15_000))
            end.later(notice_ms, lambda end=end: end.on_cut(self))  # type: ignore[misc]


def call(
    client: Part,
    serve: Callable[[], object],
    answered: Callable[[object], None],
    timeout_ms: int = 2_000,
) -> None:
    """A remote call that is repeated until an answer comes; what was sent before may still be
    carried out, at any time, and its answer is nobody's."""
    kernel = client.kernel
    done = [False]

    def take(answer: object) -> None:
        if not done[0]:
            done[0] = True
            answered(answer)

    def arrive() -> None:
        answer = serve()
        if not kernel.is_lost():
            client.later(kernel.delay_ms(), lambda: take(answer))

    def send() -> None:
        if done[0]:
            return
        for _ in range(1 + kernel.is_repeated()):
            if not kernel.is_lost():
                kernel.at(kernel.delay_ms(), arrive)
        client.later(timeout_ms, send)

    send()
