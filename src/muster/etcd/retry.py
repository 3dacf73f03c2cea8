"""Decides which failed etcd calls are repeated, and when. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

# A call is tried at most so often, however many endpoints there are.
MAX_ATTEMPTS = 4

# Retries may be at most this share of all calls, after a first handful: an etcd that is going
# under must not be pushed down by its clients.
BUDGET_SHARE = 0.2
BUDGET_BURST = 10.0

# gRPC core's own words for a call that found no connection to go out on.
_NEVER_SENT = (
    "failed to connect to all addresses",
    "errors resolving",
    "DNS resolution failed",
    "name resolution",
)


class Failure(Enum):
    """What a failed call means for its effect."""

    NEVER_SENT = auto()  # certainly without effect
    UNCERTAIN = auto()  # it may have been carried out
    NO_LEASE = auto()  # etcd does not know the lease named in the request
    NO_SUCH_REVISION = auto()  # compacted away, or not yet reached
    REFUSED = auto()  # etcd said no and will say so again


def classify(code: str, detail: str) -> Failure:
    """`code` is the gRPC status name, `detail` its text."""
    if code == "UNAVAILABLE":
        sent = not any(words in detail for words in _NEVER_SENT)
        return Failure.UNCERTAIN if sent else Failure.NEVER_SENT
    if code in ("DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN"):
        return Failure.UNCERTAIN
    if code == "NOT_FOUND" and "lease not found" in detail:
        return Failure.NO_LEASE
    if code == "OUT_OF_RANGE" and "required revision" in detail:
        return Failure.NO_SUCH_REVISION
    return Failure.REFUSED


def may_repeat(failure: Failure, repeatable: bool, attempt: int) -> bool:
    """Whether to try again after attempt number `attempt` (1 is the first).

    `repeatable` says that carrying the call out twice does no harm.
    """
    if attempt >= MAX_ATTEMPTS:
        return False
    return failure is Failure.NEVER_SENT or (failure is Failure.UNCERTAIN and repeatable)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: between 0 and a bound that doubles from `first_s` up to `max_s`."""

    first_s: float
    max_s: float

    def delay_s(self, failures: int, chance: float) -> float:
        """After `failures` ≥ 1 failures in a row; `chance` is a random number in [0, 1)."""
        doublings = min(failures - 1, 30)
        return chance * min(self.max_s, self.first_s * 2.0**doublings)


class RetryBudget:
    """Allows retries as a share of successful calls."""

    def __init__(self, share: float = BUDGET_SHARE, burst: float = BUDGET_BURST) -> None:
        self._share, self._burst = share, burst
        self._tokens = burst

    def succeeded(self) -> None:
        self._tokens = min(self._burst, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one more retry may be made now."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
