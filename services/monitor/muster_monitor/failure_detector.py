"""Who is suspected: phi accrual over heartbeats, with the observer's own stalls left out. Pure.

Source: N. Hayashibara, X. Défago, R. Yared, T. Katayama, "The φ accrual failure detector",
SRDS 2004. The gaps between beats are taken as normally distributed; phi is the negative decimal
logarithm of the probability that a living agent is silent for this long, so phi 8 is wrong once
in 10^8 looks. `acceptable_pause_ms` moves the whole distribution: a pause of that length is
ordinary (garbage collection, a busy machine).

All times are milliseconds of one monotonic clock of the observer, passed in.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

from muster.domain.ids import AgentId

# Past this argument the complementary error function nears the smallest float; the first terms of
# its asymptotic series agree with it to 1e-9 from here on.
_ERFC_LIMIT = 20.0
_LN10 = math.log(10.0)


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """With the defaults a killed agent is suspected 2.5 s after its death at the median.

    `heartbeat_ms` is both what agents are told and the estimate before the first gap is known.
    A suspicion is lifted after `clear_beats` beats and with phi under `clear_phi`.
    """

    heartbeat_ms: int = 1000
    threshold: float = 8.0
    min_deviation_ms: float = 100.0
    acceptable_pause_ms: float = 1500.0
    window: int = 1000
    clear_phi: float = 1.0
    clear_beats: int = 2


def tail_phi(deviations: float) -> float:
    """-log10 of the normal distribution's upper tail; finite and growing for every input.

    `deviations`: how many standard deviations above the mean.
    """
    x = deviations / math.sqrt(2.0)
    if x < _ERFC_LIMIT:
        return max(0.0, -math.log10(0.5 * math.erfc(x)))
    # erfc(x) ~ exp(-x²) / (x √π) · (1 - 1/2x² + 3/4x⁴ - 15/8x⁶); only its logarithm is formed.
    inverse = 1.0 / (2.0 * x * x)
    series = 1.0 - inverse + 3.0 * inverse**2 - 15.0 * inverse**3
    ln_tail = -x * x - math.log(2.0 * x * math.sqrt(math.pi)) + math.log(series)
    return -ln_tail / _LN10


class PhiDetector:
    """The gaps between the beats of one incarnation, and what its present silence means.

    Sums are kept as integers, so a beat costs the same at any window and nothing drifts.
    """

    __slots__ = ("_gaps", "_heard_ms", "_next", "_sampled_ms", "_settings", "_squares", "_sum")

    def __init__(self, settings: DetectorSettings, now_ms: int) -> None:
        """Begins with a beat at `now_ms` and two gaps around the heartbeat as the estimate."""
        self._settings = settings
        self._gaps = array("q")
        self._next = 0
        self._sum = 0
        self._squares = 0
        self._heard_ms = now_ms
        self._sampled_ms = now_ms
        quarter = settings.heartbeat_ms // 4
        self._learn(settings.heartbeat_ms - quarter)
        self._learn(settings.heartbeat_ms + quarter)

    def beat(self, now_ms: int) -> None:
        """A beat that is older than the last one heard changes nothing."""
        if now_ms <= self._heard_ms:
            return
        gap = now_ms - self._sampled_ms
        # A silence that amounts to a suspicion was an outage: learning it would blind the
        # detector to the next one.
        outage = self.phi(now_ms) >= self._settings.threshold
        self._heard_ms = now_ms
        # Reports that carry log lines come between the regular ones and tell nothing of the pace.
        if gap * 2 < self._settings.heartbeat_ms:
            return
        self._sampled_ms = now_ms
        if not outage:
            self._learn(gap)

    def silence_ms(self, now_ms: int) -> int:
        return max(0, now_ms - self._heard_ms)

    def mean_ms(self) -> float:
        """Never under the agreed heartbeat: an agent may beat faster and then return to it."""
        return max(float(self._settings.heartbeat_ms), self._sum / len(self._gaps))

    def deviation_ms(self) -> float:
        count = len(self._gaps)
        # n·Σx² - (Σx)² is an exact integer and so never a negative rounding error.
        variance = (count * self._squares - self._sum * self._sum) / (count * count)
        return max(self._settings.min_deviation_ms, math.sqrt(variance))

    def phi(self, now_ms: int) -> float:
        """0 right after a beat, growing without bound in silence."""
        due_ms = self.mean_ms() + self._settings.acceptable_pause_ms
        return tail_phi((self.silence_ms(now_ms) - due_ms) / self.deviation_ms())

    def surely_alive(self, now_ms: int) -> bool:
        """True while phi is under log10 2, which most looks can settle without a logarithm."""
        return self.silence_ms(now_ms) <= self.mean_ms() + self._settings.acceptable_pause_ms

    def _learn(self, gap_ms: int) -> None:
        if len(self._gaps) < self._settings.window:
            self._gaps.append(gap_ms)
        else:
            old = self._gaps[self._next]
            self._sum -= old
            self._squares -= old * old
            self._gaps[self._next] = gap_ms
            self._next = (self._next + 1) % self._settings.window
        self._sum += gap_ms
        self._squares += gap_ms * gap_ms


@dataclass(frozen=True, slots=True)
class Verdict:
    """A change of opinion about one incarnation."""

    agent: AgentId
    incarnation: int
    suspected: bool
    phi: float
    why: str


@dataclass(slots=True)
class _Watched:
    incarnation: int
    detector: PhiDetector
    suspected: bool = False
    beats_since: int = 0
    counted_ms: int = 0
    registered: bool = True


@dataclass(frozen=True, slots=True)
class ObserverSettings:
    """How the observer judges itself.

    It looks every `tick_ms`. A gap of more than `stall_ms` between two calls is its own stall and
    counts for nobody; after one of `long_stall_ms` nobody is newly suspected for `grace_ms`,
    because agents may have to connect anew. Silent agents that are no longer registered are
    forgotten after `forget_ms`, others after `forget_registered_ms`.
    """

    tick_ms: int = 100
    stall_ms: int = 300
    long_stall_ms: int = 1000
    grace_ms: int = 3000
    forget_ms: int = 60_000
    forget_registered_ms: int = 900_000
    # More agents than one monitor can hear; above it new ones are not judged.
    max_agents: int = 10_000


class FailureTable:
    """One detector per agent, for its newest incarnation.

    Keeps an own clock that stands still while the observer stalls: whoever was not listening
    cannot say that somebody was silent.
    """

    def __init__(
        self,
        settings: DetectorSettings | None = None,
        observer: ObserverSettings | None = None,
    ) -> None:
        self._settings = settings or DetectorSettings()
        self._observer = observer or ObserverSettings()
        self._watched: dict[AgentId, _Watched] = {}
        self._pending: list[Verdict] = []
        self._last_now_ms: int | None = None
        self._lag_ms = 0
        self._judge_from_ms = 0
        self.unwatched_beats = 0

    def __len__(self) -> int:
        return len(self._watched)

    @property
    def total_lag_ms(self) -> int:
        """How long the observer has stalled so far."""
        return self._lag_ms

    def observe_lag(self, now_ms: int) -> int:
        """Takes note of the time and returns by how much the observer had stalled before it.

        Every other method that takes a time calls this first, so that beats which queued up
        during a stall are not read as silence, whichever call comes first after it.
        """
        last, self._last_now_ms = self._last_now_ms, now_ms
        if last is None or now_ms - last <= self._observer.stall_ms:
            return 0
        lag = now_ms - last - self._observer.tick_ms
        self._lag_ms += lag
        if lag >= self._observer.long_stall_ms:
            self._judge_from_ms = now_ms - self._lag_ms + self._observer.grace_ms
        return lag

    def observe(self, agent: AgentId, incarnation: int, now_ms: int) -> bool:
        """A beat. False when it is of an older incarnation, or the table is full."""
        own_ms = self._own_ms(now_ms)
        entry = self._watched.get(agent)
        if entry is None or incarnation > entry.incarnation:
            return self._begin(agent, incarnation, own_ms, entry)
        if incarnation < entry.incarnation:
            return False
        entry.detector.beat(own_ms)
        # Beats that queued up and arrive together prove life once.
        if entry.suspected and (own_ms - entry.counted_ms) * 4 >= self._settings.heartbeat_ms:
            entry.beats_since += 1
            entry.counted_ms = own_ms
        return True

    def leave(self, agent: AgentId, incarnation: int) -> bool:
        """The incarnation ends on purpose: its silence is no failure. False when not watched."""
        entry = self._watched.get(agent)
        if entry is None or incarnation < entry.incarnation:
            return False
        self._forget(agent, entry, "it left")
        return True

    def set_registered(self, agent: AgentId, registered: bool) -> None:
        """Unregistered agents are forgotten sooner once they are silent."""
        entry = self._watched.get(agent)
        if entry is not None:
            entry.registered = registered

    def verdicts(
        self, now_ms: int, distrust_ms: int = 0, may_suspect: bool = True
    ) -> list[Verdict]:
        """All changes since the last call.

        An observer that does not trust itself lets silence be `distrust_ms` longer before it
        suspects anybody, or newly suspects nobody at all.
        """
        own_ms = self._own_ms(now_ms)
        may_suspect = may_suspect and own_ms >= self._judge_from_ms
        seen_ms = own_ms - max(0, distrust_ms)
        forgotten = []
        for agent, entry in self._watched.items():
            if not entry.suspected:
                if not may_suspect or entry.detector.surely_alive(seen_ms):
                    continue
                self._suspect(agent, entry, own_ms, seen_ms)
                continue
            if entry.beats_since:
                self._reconsider(agent, entry, own_ms)
            if entry.suspected and entry.detector.silence_ms(own_ms) > self._patience_ms(entry):
                forgotten.append((agent, entry))
        for agent, entry in forgotten:
            self._forget(agent, entry, "it was silent for so long that it is forgotten")
        changes, self._pending = self._pending, []
        return changes

    def suspicions(self, now_ms: int) -> list[Verdict]:
        """Everybody suspected now."""
        own_ms = self._own_ms(now_ms)
        return [
            Verdict(agent, entry.incarnation, True, entry.detector.phi(own_ms), "")
            for agent, entry in self._watched.items()
            if entry.suspected
        ]

    def phi(self, agent: AgentId, now_ms: int) -> float | None:
        """None for an agent that is not watched."""
        entry = self._watched.get(agent)
        return None if entry is None else entry.detector.phi(self._own_ms(now_ms))

    def is_suspected(self, agent: AgentId) -> bool:
        entry = self._watched.get(agent)
        return entry is not None and entry.suspected

    def incarnation(self, agent: AgentId) -> int:
        """0 for an agent that is not watched."""
        entry = self._watched.get(agent)
        return 0 if entry is None else entry.incarnation

    def agents(self) -> list[AgentId]:
        return list(self._watched)

    def _own_ms(self, now_ms: int) -> int:
        self.observe_lag(now_ms)
        return now_ms - self._lag_ms

    def _begin(
        self, agent: AgentId, incarnation: int, own_ms: int, before: _Watched | None
    ) -> bool:
        if before is None and len(self._watched) >= self._observer.max_agents:
            self.unwatched_beats += 1
            return False
        if before is not None and before.suspected:
            why = f"incarnation {incarnation} took its place"
            self._pending.append(Verdict(agent, incarnation, False, 0.0, why))
        self._watched[agent] = _Watched(incarnation, PhiDetector(self._settings, own_ms))
        return True

    def _suspect(self, agent: AgentId, entry: _Watched, own_ms: int, seen_ms: int) -> None:
        phi = entry.detector.phi(seen_ms)
        if phi < self._settings.threshold:
            return
        entry.suspected, entry.beats_since, entry.counted_ms = True, 0, own_ms
        silent_s = entry.detector.silence_ms(own_ms) / 1000
        why = f"silent for {silent_s:.1f} s (phi {phi:.1f}, threshold {self._settings.threshold:g})"
        self._pending.append(Verdict(agent, entry.incarnation, True, phi, why))

    def _reconsider(self, agent: AgentId, entry: _Watched, own_ms: int) -> None:
        phi = entry.detector.phi(own_ms)
        if phi >= self._settings.threshold:
            entry.beats_since = 0
        elif entry.beats_since >= self._settings.clear_beats and phi < self._settings.clear_phi:
            entry.suspected = False
            why = f"heard again, {entry.beats_since} beats"
            self._pending.append(Verdict(agent, entry.incarnation, False, phi, why))

    def _forget(self, agent: AgentId, entry: _Watched, why: str) -> None:
        del self._watched[agent]
        if entry.suspected:
            self._pending.append(Verdict(agent, entry.incarnation, False, 0.0, why))

    def _patience_ms(self, entry: _Watched) -> int:
        observer = self._observer
        return observer.forget_ms if not entry.registered else observer.forget_registered_ms
