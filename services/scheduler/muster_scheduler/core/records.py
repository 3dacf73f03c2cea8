"""What the leader keeps in memory of each open task and each agent, and the time it is given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from muster.domain.agent import AgentRecord
from muster.domain.agent_lifecycle import AgentState, AgentWish, may_receive_work
from muster.domain.ids import AgentId, TaskId, TenantId
from muster.domain.task import POISON_DEATHS, TaskSpec, TaskStatus, Wish
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core.mass_failure import ZONE_LABEL
from muster_scheduler.learning.attempts import TaskFeatures
from muster_scheduler.placement.devices import NO_DEVICES, Devices

# A task that so many agents have died with runs alone: one more, and it is DEAD.
SUSPECT_DEATHS = POISON_DEATHS - 1
# Entries of an agent's timeline; older ones are in the events, while those are kept.
MAX_EVIDENCE = 50
MAX_WHY_CHARS = 500
NOBODY = TaskId("")


class Now(msgspec.Struct, frozen=True):
    """One moment on three clocks, in milliseconds.

    `boot_ms` is this machine's CLOCK_BOOTTIME (silence of agents), `clock_ms` cluster time
    (deadlines of tasks), `wall_ms` unix time (shown to people, never compared).
    """

    boot_ms: int
    clock_ms: int
    wall_ms: int


class AttemptRef(msgspec.Struct, frozen=True):
    """One attempt of one task."""

    task_id: TaskId
    attempt: int
    tenant: TenantId


class EffectKind(Enum):
    """Kinds of effects."""

    ASSIGN = "push the attempt to its agent"
    ACK = "tell the agent that its outcome is recorded"
    CANCEL = "tell the agent to end the attempt"


class Effect(msgspec.Struct, frozen=True):
    """What follows once the decision that it came with is durable. `agent` is who is told."""

    kind: EffectKind
    agent: AgentId
    ref: AttemptRef


class Write(msgspec.Struct, frozen=True, eq=False):
    """One compare-and-set under way: from `expect` to `status`; `expect` None = a new task."""

    task: OpenTask
    expect: tuple[TaskState, int] | None
    status: TaskStatus
    effects: tuple[Effect, ...]


class Begun(msgspec.Struct, frozen=True):
    """Of an attempt that will be noted when it ends.

    load         dominant share of the agent in use when it was assigned, without it
    reference_s  the least that it was predicted to take on any agent; 0 = nothing was predicted
    choice       number of the choice of a strategy that is judged by it, 0 = none
    """

    load: float
    reference_s: float = 0.0
    choice: int = 0


class OpenTask:
    """A task that has not ended durably, as the leader knows it.

    `status` is what was decided, `stored` the (state, attempt) that storage holds (None: it is
    not created yet). Decisions run ahead of storage: while `write` is under way further ones
    change `status` and gather `effects` (it is `ahead`), and the next write carries them all.
    `wire` belongs to the shell: the message that an agent gets. The core never looks at it.
    `row` is the agent table's row that the task is charged to, -1 = none; `devices` are those that
    it is charged with there. `alone_since_boot_ms` is
    since when a suspect waits to run alone, 0 = not known yet. `begun` is set while its attempt is
    one that will be noted, `progress_clock_ms` is when it last showed progress, where that is
    watched, `predicted_s` is how long it was expected to run, 0 = nobody knew;
    `features` are what a model sees of it, once one has looked.
    """

    __slots__ = (
        "ahead",
        "alone_since_boot_ms",
        "begun",
        "class_id",
        "devices",
        "effects",
        "features",
        "id",
        "plain_class_id",
        "predicted_s",
        "progress_boot_ms",
        "progress_clock_ms",
        "queued",
        "row",
        "spec",
        "started",
        "status",
        "stored",
        "waiting",
        "wire",
        "write",
    )

    def __init__(self, spec: TaskSpec, status: TaskStatus, wire: object, *, stored: bool) -> None:
        self.spec = spec
        # Read so often that a property would be felt.
        self.id: TaskId = spec.id
        self.status = status
        self.wire = wire
        self.stored = (status.state, status.attempt) if stored else None
        self.class_id = -1
        self.plain_class_id = -1
        self.queued = False
        self.row = -1
        self.devices: Devices = NO_DEVICES
        self.started = status.started_at_ms > 0
        self.waiting = False
        self.ahead = False
        self.alone_since_boot_ms = 0
        self.progress_clock_ms = self.progress_boot_ms = 0
        self.write: Write | None = None
        self.effects: list[Effect] = []
        self.begun: Begun | None = None
        self.predicted_s = 0.0
        self.features: TaskFeatures | None = None

    def ref(self) -> AttemptRef:
        """The present attempt."""
        return AttemptRef(self.spec.id, self.status.attempt, self.spec.tenant)

    def __repr__(self) -> str:
        return f"<OpenTask {self.spec.id} {self.status.state} attempt {self.status.attempt}>"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One entry of an agent's timeline: what happened, in which state that left it, and why.

    `what` is an AgentEvent's name, WISH, or what else was done; `who` has asked for it, "" =
    nobody; `phi` and `silent_ms` are as they were then.
    """

    at_ms: int
    state: AgentState
    why: str
    what: str = ""
    who: str = ""
    phi: float = 0.0
    silent_ms: int = 0
    incarnation: int = 0


class AgentEntry:
    """An agent as the leader sees it.

    `record` is None while the registry has not shown it (a new leader meets tasks and sessions
    first). `buried`: its supervisor says that the runtime is dead. `heard_boot_ms` is when its
    runtime was last heard. `leased` is whether the registry shows it. `supervised` is whether its
    supervisor has a session, heard at `supervisor_boot_ms`. `kept_for` is the suspect that it is
    kept for, "" = nobody, until `kept_until_boot_ms`. `owed` are the attempts of which its word is
    awaited, and since when. `probe` is the (task, attempt) that it was given on parole. Until
    `distrusted_until_boot_ms` it gets nothing new, for it did not keep its word.
    """

    __slots__ = (
        "buried",
        "distrusted_until_boot_ms",
        "draining",
        "evidence",
        "health",
        "heard_boot_ms",
        "id",
        "incarnation",
        "kept_for",
        "kept_until_boot_ms",
        "leased",
        "owed",
        "phi",
        "probe",
        "record",
        "restarting",
        "session",
        "since_boot_ms",
        "state",
        "supervised",
        "supervisor_boot_ms",
        "suspected",
        "tasks",
        "wish",
    )

    def __init__(self, ident: AgentId, now: Now) -> None:
        self.id = ident
        self.record: AgentRecord | None = None
        self.incarnation = 0
        self.state = AgentState.JOINING
        self.wish = AgentWish.NONE
        self.session = False
        self.supervised = False
        self.supervisor_boot_ms = now.boot_ms
        self.leased = False
        self.suspected = False
        self.draining = False
        self.buried = False
        self.restarting = False
        self.kept_for = NOBODY
        self.kept_until_boot_ms = 0
        self.owed: dict[tuple[TaskId, int, Wish], int] = {}
        self.distrusted_until_boot_ms = 0
        self.phi = 0.0
        self.probe: tuple[TaskId, int] | None = None
        self.health = 1.0
        self.heard_boot_ms = now.boot_ms
        self.since_boot_ms = now.boot_ms
        self.tasks: dict[TaskId, OpenTask] = {}
        self.evidence: list[Evidence] = []

    @property
    def usable(self) -> bool:
        """Whether it may get new work, as far as it itself is concerned."""
        return (
            self.session
            and may_receive_work(self.state, self.wish)
            and not self.draining
            and not self.suspected
            and (self.probe is None or self.state is not AgentState.PAROLE)
        )

    @property
    def zone(self) -> str:
        """Its label `zone`; "" = it has none."""
        if self.record is None:
            return ""
        return next((v for k, v in self.record.spec.labels if k == ZONE_LABEL), "")

    def note(self, evidence: Evidence) -> None:
        """Keeps the newest evidence."""
        self.evidence.append(evidence)
        del self.evidence[:-MAX_EVIDENCE]

    def __repr__(self) -> str:
        return f"<AgentEntry {self.id} {self.state} incarnation {self.incarnation}>"
