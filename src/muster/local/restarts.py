"""What follows the death of a child process. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# A process that says so is configured wrongly; starting it again changes nothing (sysexits.h).
EXIT_CONFIGURATION = 78
# A child that has run this long is sound: its next death counts as a first one.
SOUND_AFTER_S = 30.0
# Before the cluster is ready a person waits; after so many deaths of one child he is told.
MAX_DEATHS_AT_START = 4
_FIRST_DELAY_S = 0.2
_MAX_DELAY_S = 10.0


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The cluster cannot start; the child's last words say why."""


@dataclass(frozen=True, slots=True)
class LetGo:
    """It stays away: it left of its own accord, or its configuration is wrong."""


def after_death(
    code: int, *, deaths: int, may_leave: bool, started: bool, jitter: float
) -> Restart | GiveUp | LetGo:
    """Decides on a child that ended with `code` (negative: the signal).

    `deaths`, this one included, are those without a sound run between them. `started`: the
    cluster has been ready. `jitter` is uniform in [0, 1): full jitter after the first restart.
    """
    assert deaths >= 1
    if code == EXIT_CONFIGURATION:
        return LetGo() if started else GiveUp()
    if not started and deaths >= MAX_DEATHS_AT_START:
        return GiveUp()
    if code == 0 and may_leave and started:
        return LetGo()
    if deaths == 1:
        return Restart(0.0)
    # 2**10 is past the bound already.
    bound_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(deaths - 1, 10))
    return Restart(bound_s * jitter)
