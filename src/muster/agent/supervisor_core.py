"""What a supervisor decides: when a runtime must end or may start, and what is told. Pure.

Times are CLOCK_BOOTTIME milliseconds, passed in.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, NamedTuple

from muster.agent.slot_table import StartedAttempt, TableView

EXIT_CONFIGURATION: Final = 78
# A runtime that lived for this long was sound: its death is met by a restart at once.
SOUND_AFTER_MS: Final = 60_000
_FIRST_PAUSE_MS: Final = 500
_LAST_PAUSE_MS: Final = 30_000
# A leader that has not heard of these many deaths has long given the agent up.
MAX_DEATHS: Final = 16
_SIGTERM: Final = 15


class Death(NamedTuple):
    """A runtime is dead and all of its processes are gone.

    `started`: the attempts that may have killed it; `known` False = nobody can say which.
    """

    incarnation: int
    started: tuple[StartedAttempt, ...]
    known: bool
    why: str


class Deaths:
    """Deaths until a leader has confirmed them; the oldest gives way beyond MAX_DEATHS."""

    def __init__(self) -> None:
        # Each with the number of the beat that followed it on this stream, 0 = not said.
        self._kept: deque[tuple[Death, int]] = deque(maxlen=MAX_DEATHS)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, death: Death) -> None:
        """The leader is to hear of it."""
        self._kept.append((death, 0))

    def unsay(self) -> None:
        """Whatever an earlier stream carried may have been lost with it."""
        self._kept = deque(((death, 0) for death, _ in self._kept), maxlen=MAX_DEATHS)

    def say_next(self, seq: int) -> Death | None:
        """The oldest that was not said on this stream; it goes out with the beat `seq`."""
        for index, (death, said) in enumerate(self._kept):
            if said == 0:
                self._kept[index] = (death, seq)
                return death
        return None

    @property
    def unsaid(self) -> bool:
        """Whether there is one that was not said on this stream."""
        return any(said == 0 for _, said in self._kept)

    def confirm(self, seq: int) -> None:
        """Messages on a stream arrive in order: an answered beat confirms what came before."""
        while self._kept and 0 < self._kept[0][1] <= seq:
            self._kept.popleft()


class Next(Enum):
    """What follows a runtime's end."""

    LEAVE = "the supervisor ends with it"
    LAST_WORDS = "the leader is told, then the supervisor ends with an error"
    START = "a new runtime is started after a pause"


class SupervisorCore:
    """One agent's runtimes, one after the other."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.stopping = False
        self._began_ms = 0
        # Deaths in a row, each too soon after its start.
        self._failures = 0
        self._kill_why = ""
        self._blameless = False

    def began(self, now_ms: int) -> None:
        """A runtime was started."""
        self._began_ms = now_ms
        self._kill_why, self._blameless = "", False

    def look(self, view: TableView, now_ms: int) -> str:
        """Why the runtime must be killed at once; "" = let it live. Called about once a second."""
        self.incarnation = view.incarnation
        if 0 < view.stop_deadline_ms < now_ms:
            # A task that must never overlap still runs although the agent is cut off.
            return "it was cut off from the leader and did not end its `stop` tasks"
        return ""

    def restart_asked(self, incarnation: int, why: str) -> str:
        """As `look`; the leader wants a new runtime in the place of this incarnation (0 = any)."""
        if incarnation not in (0, self.incarnation):
            return ""
        return f"restarted at the leader's word: {why}"

    def killed(self, why: str, *, blameless: bool = False) -> None:
        """The runtime is being killed. `blameless`: no attempt is to blame for it."""
        self._kill_why, self._blameless = why, blameless

    def ended(self, code: int) -> Next:
        """The runtime has ended with this exit code, negative = a signal."""
        if code in (0, EXIT_CONFIGURATION):
            return Next.LEAVE
        if self.stopping and code == -_SIGTERM:
            # It was not yet so far that it could drain: it held nothing.
            return Next.LEAVE
        return Next.LAST_WORDS if self.stopping else Next.START

    def death(self, code: int, view: TableView | None) -> Death:
        """What the leader is to hear. `view` is what the dead runtime's table says."""
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        started = view.started if view is not None and not self._blameless else ()
        return Death(
            incarnation=view.incarnation if view is not None else 0,
            started=started,
            known=view is not None,
            why=self._kill_why or f"the runtime ended with {how}",
        )

    def pause_ms(self, now_ms: int, chance: float) -> int:
        """How long to wait before the next start: full jitter, `chance` in [0, 1)."""
        if now_ms - self._began_ms >= SOUND_AFTER_MS:
            self._failures = 0
        self._failures += 1
        if self._failures == 1:
            return 0
        ceiling_ms = min(_LAST_PAUSE_MS, _FIRST_PAUSE_MS * 2 ** min(self._failures - 2, 20))
        return int(ceiling_ms * chance)
