"""Every error that Muster raises on purpose, as one shallow tree.

    MusterError
    ├── InvalidInput          a value breaks a stated limit            (HTTP 422)
    │   └── TooLarge          it is bigger than may be                 (413)
    ├── NotFound              no object of that name                   (404)
    ├── Conflict              the object's state forbids it            (409)
    │   └── PreconditionFailed  a compare-and-set lost                 (412)
    ├── Unauthenticated       no credential, or a wrong one            (401)
    ├── PermissionDenied      a credential that may not do this        (403)
    ├── Overloaded            a bound is reached, come back later      (429)
    ├── Unavailable           a part does not answer, come back later  (503)
    │   ├── NotLeader         another scheduler leads
    │   └── StoreRolledBack   nothing is scheduled until an operator decides
    ├── DeadlineExceeded      a part answered too late                 (504)
    ├── StaleTerm             a newer leader has written               (fencing)
    ├── IllegalTransition     a state machine was driven wrongly       (our bug)
    ├── ConfigurationError    a process cannot start as configured
    │   └── MissingDependency   a program that it needs is not there
    └── SkillImportError      a module of skills does not import

`muster.rpc.status` maps the tree to gRPC status codes, the gateway's `problems` to HTTP.
Expected outcomes of a decision (nothing fits, the write lost) are return values, not errors.
"""

from __future__ import annotations

from typing import ClassVar

# Bad values are quoted back to their sender; longer ones are cut so that an answer stays readable.
_QUOTED_CHARS = 80


def quoted(value: object) -> str:
    """The value as its sender would recognise it, at most 80 characters long."""
    text = repr(value)
    return text if len(text) <= _QUOTED_CHARS else text[: _QUOTED_CHARS - 1] + "…"


class MusterError(Exception):
    """Root of the tree. `code` is stable: programs may compare it, people read the message."""

    code: ClassVar[str] = "internal"


class InvalidInput(MusterError):
    """A value breaks a limit.

    `field` is where it stands (`tasks[3].resources.cpu`), `limit` what is accepted there.
    """

    code = "invalid_input"

    def __init__(self, field: str, value: object, limit: str) -> None:
        self.field, self.value, self.limit = field, value, limit
        super().__init__(f"{field}: {quoted(value)} is not accepted; {limit}")


class TooLarge(InvalidInput):
    """A size breaks a limit; `value` is the size that was met."""

    code = "too_large"


class NotFound(MusterError):
    """There is no `kind` (task, agent, key, blob) called `ident`."""

    code = "not_found"

    def __init__(self, kind: str, ident: str) -> None:
        self.kind, self.ident = kind, ident
        super().__init__(f"there is no {kind} {quoted(ident)}")


class Conflict(MusterError):
    """The request is sound but the object's present state forbids it."""

    code = "conflict"


class PreconditionFailed(Conflict):
    """A compare-and-set named a version that is not the present one."""

    code = "precondition_failed"


class Unauthenticated(MusterError):
    """No credential, or one that is wrong, expired or revoked."""

    code = "unauthenticated"


class PermissionDenied(MusterError):
    """A valid credential that does not allow this."""

    code = "permission_denied"


class Overloaded(MusterError):
    """A bound is reached. Nothing was done; the same request may succeed after `retry_after_s`."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Unavailable(MusterError):
    """`what` does not answer. The request may be repeated after `retry_after_s`."""

    code = "unavailable"

    def __init__(self, what: str, detail: str = "", retry_after_s: float = 1.0) -> None:
        self.what, self.detail, self.retry_after_s = what, detail, retry_after_s
        super().__init__(f"{what} is not available" + (f": {detail}" if detail else ""))


class NotLeader(Unavailable):
    """The scheduler that was asked does not lead; `leader` is host:port of the one that does."""

    code = "not_leader"

    def __init__(self, leader: str = "") -> None:
        self.leader = leader
        super().__init__("this scheduler", f"it does not lead; leader={leader or 'unknown'}", 0.2)


class StoreRolledBack(Unavailable):
    """The store holds less than it once did, and nothing is done on the strength of it."""

    code = "store_rolled_back"

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__("scheduling", why, 5.0)


class DeadlineExceeded(MusterError):
    """`what` did not answer within `seconds`; whether it acted is not known."""

    code = "deadline_exceeded"

    def __init__(self, what: str, seconds: float) -> None:
        self.what, self.seconds = what, seconds
        super().__init__(f"{what} did not answer within {seconds:g} s")


class StaleTerm(MusterError):
    """A write of term `given` met term `current`: its writer was deposed and must stop."""

    code = "stale_term"

    def __init__(self, given: int, current: int) -> None:
        self.given, self.current = given, current
        super().__init__(f"term {given} is not the present term {current}")


class IllegalTransition(MusterError):
    """A state machine met an event that its table does not list for its state."""

    code = "illegal_transition"

    def __init__(
        self, kind: str, ident: str, state: str, event: str, history: tuple[str, ...] = ()
    ) -> None:
        self.kind, self.ident, self.state, self.event = kind, ident, state, event
        self.history = history
        trail = f" (history: {' → '.join(history)})" if history else ""
        super().__init__(f"{kind} {ident or '?'} in state {state} cannot take {event}{trail}")


class ConfigurationError(MusterError):
    """A process cannot start: `key` has `value`, `accepted` says what it may be."""

    code = "configuration"

    def __init__(self, key: str, value: object, accepted: str) -> None:
        self.key, self.value, self.accepted = key, value, accepted
        super().__init__(f"{key}={quoted(value)} is not accepted; {accepted}")


class MissingDependency(ConfigurationError):
    """A program that a process needs is missing, too old, or does not start."""

    code = "missing_dependency"

    def __init__(self, program: str, advice: str) -> None:
        super().__init__(program, None, advice)
        self.args = (f"{program} cannot be used: {advice}",)


class SkillImportError(MusterError):
    """A module named by `--skills` does not import, or holds no skill."""

    code = "skill_import"
