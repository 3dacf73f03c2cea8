"""What several monitors say of the same agents, as one opinion. Pure.

An agent reports to one monitor at a time. One that it has left hears nothing and comes to suspect
it, which says nothing: so a suspicion counts only while no other monitor hears the agent, and one
that was overruled does not come back when that monitor dies.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from muster.domain.ids import AgentId

# Of all monitors together; a monitor hears 10,000 at most. What is beyond it is not combined.
_MAX_VOICES: Final = 100_000


class Word(NamedTuple):
    """What one monitor says of an agent: `heard` and not `suspected` = it is alive.

    Neither = the monitor does not hear it any more, and has no opinion.
    """

    agent: AgentId
    incarnation: int
    suspected: bool
    heard: bool
    phi: float = 0.0


class Opinion(NamedTuple):
    """What follows for the leader. `incarnation` 0 = whichever it is."""

    agent: AgentId
    incarnation: int
    suspected: bool
    phi: float


class Witnesses:
    """The words of all monitors; a monitor is known by its address."""

    def __init__(self) -> None:
        self._heard: dict[AgentId, set[str]] = {}
        self._suspecting: dict[AgentId, set[str]] = {}
        self._voices = 0

    def takes(self, monitor: str, word: Word) -> Opinion | None:
        """The opinion that this word leads to; None when it changes none."""
        agent = word.agent
        if not word.suspected:
            if not word.heard:
                self._forget(self._heard, monitor, agent)
                return self._cleared(monitor, agent)
            self._add(self._heard, monitor, agent)
            # Whoever suspected it has lost sight of it.
            lifted = self._suspecting.pop(agent, set())
            self._voices -= len(lifted)
            return Opinion(agent, 0, False, 0.0) if lifted else None
        self._forget(self._heard, monitor, agent)
        if self._heard.get(agent):
            return self._cleared(monitor, agent)
        self._add(self._suspecting, monitor, agent)
        return Opinion(agent, word.incarnation, True, word.phi)

    def all_of(self, monitor: str, words: Collection[Word]) -> list[Opinion]:
        """As `takes`, of words that are all that this monitor has to say."""
        named = {word.agent for word in words}
        opinions = self._drop(monitor, keep=named)
        for word in words:
            opinion = self.takes(monitor, word)
            if opinion is not None:
                opinions.append(opinion)
        return opinions

    def silent(self, monitor: str) -> list[Opinion]:
        """The monitor is gone: what it said counts no more."""
        return self._drop(monitor, keep=frozenset())

    def _drop(self, monitor: str, keep: Collection[AgentId]) -> list[Opinion]:
        for agent in [a for a, by in self._heard.items() if monitor in by and a not in keep]:
            self._forget(self._heard, monitor, agent)
        dropped = [a for a, by in self._suspecting.items() if monitor in by and a not in keep]
        opinions = (self._cleared(monitor, agent) for agent in dropped)
        return [opinion for opinion in opinions if opinion is not None]

    def _cleared(self, monitor: str, agent: AgentId) -> Opinion | None:
        """This monitor suspects it no more; an opinion when it was the last that did."""
        if not self._forget(self._suspecting, monitor, agent) or agent in self._suspecting:
            return None
        return Opinion(agent, 0, False, 0.0)

    def _add(self, voices: dict[AgentId, set[str]], monitor: str, agent: AgentId) -> None:
        by = voices.get(agent, set())
        if monitor not in by and self._voices < _MAX_VOICES:
            voices.setdefault(agent, set()).add(monitor)
            self._voices += 1

    def _forget(self, voices: dict[AgentId, set[str]], monitor: str, agent: AgentId) -> bool:
        by = voices.get(agent)
        if by is None or monitor not in by:
            return False
        by.discard(monitor)
        self._voices -= 1
        if not by:
            del voices[agent]
        return True
