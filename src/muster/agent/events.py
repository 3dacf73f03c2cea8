"""What the runtime's core is told (events) and what it asks of its shell (commands).

Times ending in `_ms` are CLOCK_BOOTTIME; those in `_at_ms` are wall time and only recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from muster.domain.ids import TaskId, TenantId
from muster.domain.task import Outcome, Wish

# Between asking an attempt to end and ending its process.
STOP_GRACE_MS: Final = 2_000


class AttemptKey(NamedTuple):
    """One attempt of one task."""

    task_id: TaskId
    attempt: int


class DeviceShare(NamedTuple):
    """Devices of one resource: `millis` thousandths (1 to 1000) of each of the `indices`."""

    resource: str
    millis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttemptSpec:
    """What the leader assigned. `timeout_ms` is start-to-close, 0 = none."""

    key: AttemptKey
    tenant: TenantId
    skill: str
    input_json: bytes
    incarnation: int
    timeout_ms: int = 0
    stop_when_cut_off: bool = False
    priority: int = 0
    depth: int = 0
    devices: tuple[DeviceShare, ...] = ()


class HeldState(StrEnum):
    """What a hello says of an attempt."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


class HeldRef(NamedTuple):
    """One line of a hello."""

    key: AttemptKey
    tenant: TenantId
    state: HeldState


class StopReason(StrEnum):
    """Why an attempt is being ended from outside."""

    CANCEL = "cancel"
    TIME_OUT = "time_out"
    # The agent drains; the attempt is returned.
    DRAIN = "drain"
    # Cut off from the leader for too long, and the task must never overlap.
    DISCONNECT = "disconnect"
    # Given to another agent: nobody wants to hear of it any more.
    DROP = "drop"


# --- events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registered:
    """The registry knows this runtime under this incarnation."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A stream to a leader stands; nothing was said on it yet."""


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The leader took the hello."""

    term: int


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The stream is gone, and with it all that was not written yet."""


@dataclass(frozen=True, slots=True)
class BeatAnswered:
    """The leader answered the beat with this number."""

    term: int
    seq: int


@dataclass(frozen=True, slots=True)
class Assigned:
    """The leader gave attempts to this agent."""

    term: int
    attempts: tuple[AttemptSpec, ...]


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """The leader wants an attempt ended."""

    term: int
    key: AttemptKey
    wish: Wish


@dataclass(frozen=True, slots=True)
class OutcomesAcked:
    """The leader recorded these outcomes, or refused them as stale."""

    term: int
    keys: tuple[AttemptKey, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """These attempts were given to another agent."""

    term: int
    keys: tuple[AttemptKey, ...]


@dataclass(frozen=True, slots=True)
class LeaderDrain:
    """The operator drains this agent: give back what has not started."""

    term: int


@dataclass(frozen=True, slots=True)
class DrainBegan:
    """This runtime is to end; what still runs at `deadline_ms` is returned."""

    deadline_ms: int


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """A process took the attempt up."""

    key: AttemptKey
    started_at_ms: int


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """Nothing runs any more for this attempt; `outcome` is how it looked from inside.

    An attempt that was stopped by command ends as CANCELLED, whatever the reason was.
    """

    key: AttemptKey
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class WaitBegan:
    """The attempt waits for a child task and needs no slot meanwhile."""

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class WaitEnded:
    """What the attempt waited for is there; it goes on when a slot is free."""

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Registered
    | SessionOpened
    | Welcomed
    | SessionLost
    | BeatAnswered
    | Assigned
    | CancelAsked
    | OutcomesAcked
    | Dropped
    | LeaderDrain
    | DrainBegan
    | AttemptStarted
    | AttemptEnded
    | WaitBegan
    | WaitEnded
    | Tick
)


# --- commands -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Run the attempt as soon as a process is free for it."""

    spec: AttemptSpec


@dataclass(frozen=True, slots=True)
class Stop:
    """End the attempt, after `grace_ms` by force; answered by AttemptEnded once nothing of it
    runs."""

    key: AttemptKey
    reason: StopReason
    grace_ms: int = STOP_GRACE_MS


@dataclass(frozen=True, slots=True)
class Resume:
    """Let a waiting attempt go on."""

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class SendHello:
    """First words of a session."""

    held: tuple[HeldRef, ...]


@dataclass(frozen=True, slots=True)
class SendBeat:
    """A sign of life, numbered."""

    seq: int
    sent_boot_ms: int


@dataclass(frozen=True, slots=True)
class SendStarted:
    """Tell the leader that the attempt runs; worthless once its outcome is sent."""

    key: AttemptKey
    tenant: TenantId
    started_at_ms: int


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """Tell the leader how the attempt ended."""

    key: AttemptKey
    tenant: TenantId
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class SendWaiting:
    """Tell the leader that the attempt gave its slot back, or took it again."""

    key: AttemptKey
    tenant: TenantId
    waiting: bool


@dataclass(frozen=True, slots=True)
class SendDraining:
    """Tell the leader to place nothing here."""


@dataclass(frozen=True, slots=True)
class CloseSession:
    """The leader breaks a bound; begin a new session, whose hello tells it what is held."""

    why: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The attempt left the agent's books: nothing is owed about it any more."""

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class Finished:
    """The drain is complete: the runtime may end."""

    undelivered: int


Command = (
    Start
    | Stop
    | Resume
    | SendHello
    | SendBeat
    | SendStarted
    | SendOutcome
    | SendWaiting
    | SendDraining
    | CloseSession
    | Forget
    | Finished
)
