"""Virtual time, and parts that end, freeze and thaw. All of a run comes from its seed."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.scenarios.sim_network import Link

Act = Callable[[], None]

# Lines of the trace that a failure shows; a replay can show all.
SHOWN_LINES = 120
# Boot and wall clocks of parts differ by up to this much; neither may be compared between parts.
MAX_BOOT_MS = 10_000_000
WALL_MS = 1_700_000_000_000
MAX_WALL_SKEW_MS = 3_600_000
# A boot clock is steered by this much at most: Linux slews by up to 500 ppm.
MAX_DRIFT = 500e-6
# What takes this long by one clock may take so much longer or shorter by another.
FASTEST = 1 + 3 * MAX_DRIFT


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


@dataclass(slots=True)
class HostClock:
    """The clocks of one machine. `rate`: how fast its boot clock runs, 1 = as fast as time."""

    boot_offset_ms: int
    wall_skew_ms: int
    rate: float

    @classmethod
    def drawn(cls, rng: random.Random) -> HostClock:
        return cls(
            boot_offset_ms=rng.randrange(1_000, MAX_BOOT_MS),
            wall_skew_ms=rng.randrange(-MAX_WALL_SKEW_MS, MAX_WALL_SKEW_MS),
            rate=1 + MAX_DRIFT * rng.choice((-1.0, 0.0, 1.0)),
        )


class Kernel:
    """The only clock and the only chance of a run."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_ms = 0
        self.weather = Weather.drawn(self.rng)
        self.steps = 0
        self.over = False
        # What has happened how often, see sim_tally.
        self.tally: Counter[str] = Counter()
        self._clocks: dict[str, HostClock] = {}
        self._heap: list[tuple[int, int, Act]] = []
        self._scheduled = 0
        self._trace: list[tuple[int, str, tuple[object, ...]]] = []

    def at(self, delay_ms: float, act: Act) -> None:
        self._scheduled += 1
        at_ms = self.now_ms + (int(delay_ms) if delay_ms > 0 else 0)
        heapq.heappush(self._heap, (at_ms, self._scheduled, act))

    def run(self, limit_ms: int) -> bool:
        """Steps until `over`; False when `limit_ms` comes first."""
        heap, pop = self._heap, heapq.heappop
        while not self.over:
            if not heap or heap[0][0] > limit_ms:
                return False
            self.now_ms, _, act = pop(heap)
            self.steps += 1
            act()
        return True

    def clock_of(self, host: str) -> HostClock:
        """The clocks of the machine, the same for all that runs there."""
        clock = self._clocks.get(host)
        if clock is None:
            clock = self._clocks[host] = HostClock.drawn(self.rng)
        return clock

    def say(self, who: str, *words: object) -> None:
        self._trace.append((self.now_ms, who, words))

    def trace(self, lines: int | None = SHOWN_LINES) -> str:
        """The end of what happened, for people: time in seconds, actor, event."""
        shown = self._trace if lines is None else self._trace[-lines:]
        return "\n".join(
            f"{at / 1000:9.3f} {who:<10} {' '.join(str(w) for w in words)}"
            for at, who, words in shown
        )

    # ---------------------------------------------------------------------- chance

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
    """Something that runs: it can end for ever, or freeze and go on where it was.

    `host` is its address in the network; parts of one machine share it.
    """

    def __init__(self, kernel: Kernel, name: str, host: str = "") -> None:
        self.kernel = kernel
        self.name = name
        self.host = host or name
        self.alive = True
        self.frozen_until_ms = 0
        self.streams: list[Link] = []
        self.clock = kernel.clock_of(self.host)

    @property
    def frozen(self) -> bool:
        return self.kernel.now_ms < self.frozen_until_ms

    def boot_ms(self) -> int:
        """Its CLOCK_BOOTTIME: runs on while it is frozen."""
        return self.clock.boot_offset_ms + int(self.kernel.now_ms * self.clock.rate)

    def wall_ms(self) -> int:
        """Its idea of the date, which may jump."""
        return WALL_MS + self.clock.wall_skew_ms + self.kernel.now_ms

    def later(self, delay_ms: float, act: Act) -> None:
        """Does something after a while by its own clock, unless it has ended by then."""
        self.kernel.at(math.ceil(delay_ms / self.clock.rate), lambda: self.do(act))

    def do(self, act: Act) -> None:
        """Now, or at the thaw, in order."""
        if not self.alive:
            return
        if self.kernel.now_ms < self.frozen_until_ms:
            self.kernel.at(self.frozen_until_ms - self.kernel.now_ms, lambda: self.do(act))
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
