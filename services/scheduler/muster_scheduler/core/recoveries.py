"""The book of recoveries: which agents are down, what was done about each, and what came of it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from muster.domain.ids import AgentId, TaskId
from muster_scheduler.core.records import Now, OpenTask
from muster_scheduler.recovery import (
    Beliefs,
    FailureKind,
    RecoverySettings,
    RestartBudget,
    SpareLedger,
)
from muster_scheduler.recovery.settings import number

# Recoveries under way at once; of agents that fail beyond, tasks are given away without a plan.
MAX_OPEN_RECOVERIES: Final = 1_000
# Actions noted of one recovery; of those beyond only the last is.
MAX_ACTIONS: Final = 32
# Restart budgets of agents, each of an hour; who was not restarted for longest is forgotten.
MAX_BUDGETS: Final = 10_000
# Before a move was seen. The mean follows what is seen within some ten moves.
FIRST_MOVE_S: Final = 0.1
_MOVE_WEIGHT: Final = 0.1
_LONGEST_MOVE_S: Final = 60.0


@dataclass(slots=True, eq=False)
class Recovery:
    """One outage of one agent, from when it was found DOWN.

    `incarnation` is the one that failed, `heard_boot_ms` when it was last heard (for `died`: when
    it died). `blamed`: attempts that are charged with its death once they are lost. `dead`: nothing
    of the failed incarnation runs any more. `holding`: its tasks stand still and wait for it.
    `restarting_boot_ms`: since when a restart is under way, its pause included. `order_boot_ms`:
    when that is to be told to its supervisor; None = it was, or need not be. `awaited`: tasks that
    were lost, with what was lost of each (ms), until they run again. Costs are task-milliseconds.
    """

    id: str
    agent: AgentId
    incarnation: int
    kind: FailureKind
    why: str
    policy: str
    began: Now
    heard_boot_ms: int
    slots: int
    tasks: int
    dead: bool
    blamed: set[tuple[TaskId, int]] = field(default_factory=set)
    holding: bool = True
    tried: int = 0
    restarting_boot_ms: int | None = None
    order_boot_ms: int | None = None
    restart_took_ms: int | None = None
    # Until when (boot) its staying away was told to the beliefs.
    learned_boot_ms: int = 0
    actions: list[dict[str, Any]] = field(default_factory=list)
    action: str = ""
    expected_cost_s: float = 0.0
    # (task, ms lost of it, boot ms when it was given away, whether there was a free slot)
    awaited: dict[TaskId, tuple[OpenTask, int, int, bool]] = field(default_factory=dict)
    # Lost to a newer incarnation that has registered and is not READY yet.
    rejoining: list[OpenTask] = field(default_factory=list)
    cost_ms: int = 0
    moved: int = 0
    rerun: int = 0
    kept: int = 0
    longest_wait_ms: int = 0
    back_boot_ms: int | None = None
    outcome: str = ""
    ended: Now | None = None

    @property
    def is_open(self) -> bool:
        return self.ended is None


class Recoveries:
    """Those of one leader. `beliefs`, budgets and `move_s` come from the leader before, when the
    shell has read them; `changed_beliefs` says that they are to be kept anew."""

    def __init__(self) -> None:
        self.settings = RecoverySettings()
        self.open: dict[AgentId, Recovery] = {}
        self.ledger = SpareLedger()
        self.beliefs = Beliefs()
        self.budgets: OrderedDict[AgentId, RestartBudget] = OrderedDict()
        self.move_s = FIRST_MOVE_S
        self.changed_beliefs = False
        # T of all open tasks, as last measured (s).
        self.open_response_s = 0.0
        # How many were decided in the present second.
        self.decided = (0, 0)

    def budget(self, ident: AgentId) -> RestartBudget:
        """The agent's restarts of the last hour."""
        found = self.budgets.get(ident)
        if found is None:
            found = self.budgets[ident] = RestartBudget(self.settings.restarts_per_hour)
            while len(self.budgets) > MAX_BUDGETS:
                self.budgets.popitem(last=False)
        self.budgets.move_to_end(ident)
        return found

    def note_move(self, took_s: float) -> None:
        """A task that was given away while slots were free runs again after so long."""
        took_s = min(took_s, _LONGEST_MOVE_S)
        self.move_s += _MOVE_WEIGHT * (took_s - self.move_s)
        self.changed_beliefs = True

    def to_plain(self) -> dict[str, Any]:
        """What is learned, as plain values, for keeping."""
        return {
            "beliefs": self.beliefs.to_plain(),
            "budgets": {ident: budget.to_plain() for ident, budget in self.budgets.items()},
            "move_s": self.move_s,
        }

    def take_over(self, plain: dict[str, Any]) -> None:
        """What `to_plain` gave; raises InvalidInput for what it cannot have given."""
        move_s = number("move_s", plain.get("move_s", FIRST_MOVE_S), 0.0, _LONGEST_MOVE_S)
        beliefs = Beliefs.from_plain(plain.get("beliefs", {}))
        per_hour = self.settings.restarts_per_hour
        budgets = {
            AgentId(ident): RestartBudget.from_plain(at_s, per_hour)
            for ident, at_s in list(plain.get("budgets", {}).items())[:MAX_BUDGETS]
        }
        self.beliefs = beliefs
        # What was ordered before this was read stays noted.
        self.budgets = OrderedDict({**budgets, **self.budgets})
        self.move_s = move_s
