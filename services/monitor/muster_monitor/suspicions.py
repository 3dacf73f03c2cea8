"""What watchers of failures are told: everything once, then each change, coalesced. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from muster.domain.ids import AgentId
from muster_monitor.failure_detector import Verdict

# A watcher this many changes behind is told everything anew instead.
_HISTORY = 4096


@dataclass(frozen=True, slots=True)
class Posted:
    """A verdict and the wall time at which it was reached.

    Not `heard`: the agent does not report here any more.
    """

    verdict: Verdict
    at_ms: int
    heard: bool = True


@dataclass(frozen=True, slots=True)
class Bulletin:
    """What a watcher at one position has to hear to be at `position`."""

    posted: tuple[Posted, ...]
    snapshot: bool
    position: int


class SuspicionBoard:
    """Positions count verdicts from the start of the process; a watcher keeps its own.

    So no watcher needs a queue, however slow it is.
    """

    def __init__(self) -> None:
        self._suspected: dict[AgentId, Posted] = {}
        # Everybody else who reports here.
        self._alive: dict[AgentId, Posted] = {}
        self._history: deque[Posted] = deque(maxlen=_HISTORY)
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def post(self, verdict: Verdict, at_ms: int, *, heard: bool = True) -> None:
        """A verdict; not `heard`: the agent is forgotten here."""
        posted = Posted(verdict, at_ms, heard)
        self._suspected.pop(verdict.agent, None)
        self._alive.pop(verdict.agent, None)
        if verdict.suspected:
            self._suspected[verdict.agent] = posted
        elif heard:
            self._alive[verdict.agent] = posted
        self._history.append(posted)
        self._position += 1

    def hears(self, agent: AgentId, incarnation: int, at_ms: int) -> bool:
        """A new stream of reports. False when that is known, or its silence is not forgiven yet."""
        known = self._alive.get(agent)
        if agent in self._suspected or (known and known.verdict.incarnation == incarnation):
            return False
        self.post(Verdict(agent, incarnation, False, 0.0, "it reports here"), at_ms)
        return True

    @property
    def reasons(self) -> dict[AgentId, str]:
        """Everybody suspected now, and why."""
        return {agent: posted.verdict.why for agent, posted in self._suspected.items()}

    def snapshot(self) -> Bulletin:
        return Bulletin((*self._suspected.values(), *self._alive.values()), True, self._position)

    def since(self, position: int) -> Bulletin:
        """The newest verdict of each agent judged after `position`."""
        behind = self._position - position
        if not 0 <= behind <= len(self._history):
            return self.snapshot()
        newest: dict[AgentId, Posted] = {}
        for posted in list(self._history)[len(self._history) - behind :]:
            newest[posted.verdict.agent] = posted
        return Bulletin(tuple(newest.values()), False, self._position)
