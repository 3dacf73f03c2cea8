"""All registered agents as etcd showed them last, and what each watcher still has to hear. Pure.

A watcher is a position in a bounded history, not a queue: however slow it is, it costs nothing,
and when history does not reach back to it, it is told everything anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from muster.domain.agent import AgentRecord
from muster.domain.ids import AgentId

# Ten changes of each of a few hundred agents; a watcher further behind is told everything.
HISTORY = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """One registration. `record.revision` is etcd's; `key_hash` stays within the registry."""

    record: AgentRecord
    key_hash: bytes

    @property
    def agent(self) -> AgentId:
        return self.record.spec.id


@dataclass(frozen=True, slots=True)
class Position:
    """Where a watcher stands: `epoch` counts the times that history began anew."""

    epoch: int
    revision: int


@dataclass(frozen=True, slots=True)
class Update:
    """After it, a watcher knows the view at `position`."""

    snapshot: bool
    position: Position
    agents: tuple[AgentRecord, ...]
    removed: tuple[AgentId, ...]

    @property
    def empty(self) -> bool:
        return not (self.snapshot or self.agents or self.removed)


class AgentView:
    """Until the first `replace` nothing is known, which is not the same as nobody."""

    def __init__(self, history: int = HISTORY) -> None:
        self._members: dict[AgentId, Member] = {}
        self._history: deque[tuple[int, AgentId]] = deque(maxlen=history)
        # Everything after this revision is in the history.
        self._history_from = 0
        # Revisions up to here may be of another past (etcd was emptied or restored).
        self._foreign_until = 0
        self._epoch = 0
        self._revision = 0

    @property
    def known(self) -> bool:
        return self._epoch > 0

    @property
    def revision(self) -> int:
        return self._revision

    def __len__(self) -> int:
        return len(self._members)

    def get(self, agent: AgentId) -> Member | None:
        return self._members.get(agent)

    def replace(self, members: Iterable[Member], revision: int) -> None:
        """Everything anew, as it was at `revision`; watchers get a snapshot."""
        if revision < self._revision:
            self._foreign_until = max(self._foreign_until, self._revision)
        self._members = {member.agent: member for member in members}
        self._history.clear()
        self._history_from = self._revision = revision
        self._epoch += 1

    def put(self, member: Member) -> None:
        self._members[member.agent] = member
        self._note(member.agent, member.record.revision)

    def remove(self, agent: AgentId, revision: int) -> None:
        self._members.pop(agent, None)
        self._note(agent, revision)

    def snapshot(self) -> Update:
        return Update(
            True,
            Position(self._epoch, self._revision),
            tuple(member.record for member in self._members.values()),
            (),
        )

    def position_of(self, revision: int) -> Position | None:
        """Where a watcher that knows this revision may go on; None = it needs a snapshot."""
        reachable = self._history_from <= revision <= self._revision
        if not self.known or not reachable or revision <= self._foreign_until:
            return None
        return Position(self._epoch, revision)

    def since(self, position: Position) -> Update:
        """Changes after `position`, the newest of each agent only; or a snapshot."""
        if position.epoch != self._epoch or position.revision < self._history_from:
            return self.snapshot()
        agents: list[AgentRecord] = []
        removed: list[AgentId] = []
        seen: set[AgentId] = set()
        for revision, agent in reversed(self._history):
            if revision <= position.revision:
                break
            if agent in seen:
                continue
            seen.add(agent)
            member = self._members.get(agent)
            if member is None:
                removed.append(agent)
            else:
                agents.append(member.record)
        now = Position(self._epoch, self._revision)
        return Update(False, now, tuple(reversed(agents)), tuple(reversed(removed)))

    def _note(self, agent: AgentId, revision: int) -> None:
        if len(self._history) == self._history.maxlen:
            self._history_from = self._history[0][0]
        self._history.append((revision, agent))
        self._revision = max(self._revision, revision)
