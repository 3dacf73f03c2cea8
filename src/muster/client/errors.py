"""What the clients raise, as one tree below `muster.domain.errors.MusterError`.

    ClientError
    ├── NoCluster             no URL or key is known, or they cannot be used
    ├── Unreachable           nobody answers, or the connection breaks off again and again
    ├── DeadlinePassed        the call's own time is up (a TimeoutError); the task goes on
    ├── Unreadable            an answer that is not Muster's, or not of the type asked for
    ├── Refused               the cluster answered with a problem document (RFC 9457)
    │   ├── InvalidRequest      a value breaks a limit (400, 413, 415, 422)
    │   ├── Unauthenticated     (401)
    │   ├── PermissionDenied    (403)
    │   ├── NotFound            (404)
    │   ├── Conflict            the object's state forbids it (409)
    │   │   └── PreconditionFailed  a compare-and-set lost (412)
    │   ├── Overloaded          a bound is reached (429)
    │   └── ClusterError        a part of the cluster does not answer, or is broken (5xx)
    └── TaskUnsuccessful      a task ended without a result; `task` says how
        ├── TaskFailed          FAILED
        │   └── TaskDead        DEAD: too many agents died with it
        ├── TaskCancelled       CANCELLED
        ├── TaskTimedOut        TIMED_OUT
        └── ResultLost          SUCCEEDED, but its result can no longer be read

Values that are wrong before anything is sent raise `muster.domain.errors.InvalidInput`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from muster.client.models import Problem, Result
from muster.domain.errors import MusterError, quoted

# Of an answer that is no problem document; a proxy may send a whole page.
_MAX_SHOWN_CHARS = 500


class ClientError(MusterError):
    """Root of what the clients raise. `submitted`: ids of tasks that exist all the same."""

    code: ClassVar[str] = "client"
    submitted: Sequence[str] = ()


class NoCluster(ClientError):
    """No URL or key is known (`missing`), or they cannot be used."""

    code = "no_cluster"

    def __init__(self, message: str, *, missing: bool = False) -> None:
        self.missing = missing
        super().__init__(message)


class Unreachable(ClientError):
    """The cluster does not answer; whether the last request has arrived is not known."""

    code = "unreachable"

    def __init__(self, why: str) -> None:
        super().__init__(f"the cluster cannot be reached: {why}")


class DeadlinePassed(ClientError, TimeoutError):
    """The call's time was up. What was submitted goes on; ask again later."""

    code = "deadline_passed"

    def __init__(self, what: str, seconds: float) -> None:
        self.what, self.seconds = what, seconds
        super().__init__(f"{what} took longer than {seconds:g} s")


class Unreadable(ClientError):
    """An answer that cannot be understood."""

    code = "unreadable"


class Refused(ClientError):
    """The cluster said no. `problem` is the whole document, `retry_after_s` 0 if none was named."""

    code = "refused"

    def __init__(self, problem: Problem, retry_after_s: float = 0.0) -> None:
        self.problem, self.retry_after_s = problem, retry_after_s
        super().__init__(problem.detail or problem.title or f"the answer was {problem.status}")

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def title(self) -> str:
        """The kind of problem, in words."""
        return self.problem.title

    @property
    def detail(self) -> str:
        """What is wrong here, in one sentence."""
        return self.problem.detail

    @property
    def field(self) -> str:
        """Where the wrong value stands, e.g. `tasks[3].resources.cpu`; empty when none is."""
        return self.problem.field

    @property
    def value(self) -> str | int | float | None:
        """The wrong value, shortened."""
        return self.problem.value

    @property
    def limit(self) -> str:
        """What is accepted there."""
        return self.problem.limit


class InvalidRequest(Refused):
    """A value breaks a limit."""

    code = "invalid_input"


class Unauthenticated(Refused):
    """The API key is wrong, expired or revoked."""

    code = "unauthenticated"


class PermissionDenied(Refused):
    """The API key's role does not allow it."""

    code = "permission_denied"


class NotFound(Refused):
    """There is no such task, agent, key or blob."""

    code = "not_found"


class Conflict(Refused):
    """The object's state forbids it."""

    code = "conflict"


class PreconditionFailed(Conflict):
    """The value has another ETag by now."""

    code = "precondition_failed"


class Overloaded(Refused):
    """A bound is reached; it stayed so for as long as the call was repeated."""

    code = "overloaded"


class ClusterError(Refused):
    """A part of the cluster does not answer, or is broken."""

    code = "cluster_error"


class TaskUnsuccessful(ClientError):
    """A task ended without a result."""

    code = "task_unsuccessful"

    def __init__(self, task: Result) -> None:
        self.task = task
        why = f": {task.error.message}" if task.error is not None else ""
        super().__init__(f"task {task.id} ended as {task.state}{why}")


class TaskFailed(TaskUnsuccessful):
    """The skill failed as often as it may."""

    code = "task_failed"


class TaskDead(TaskFailed):
    """Too many agents died with the task."""

    code = "task_dead"


class TaskCancelled(TaskUnsuccessful):
    """Somebody cancelled the task."""

    code = "task_cancelled"


class TaskTimedOut(TaskUnsuccessful):
    """A deadline of the task passed."""

    code = "task_timed_out"


class ResultLost(TaskUnsuccessful):
    """The task succeeded, but its result can no longer be read."""

    code = "result_lost"


_BY_STATUS: Mapping[int, type[Refused]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: Overloaded,
}
_BY_STATE: Mapping[str, type[TaskUnsuccessful]] = {
    "SUCCEEDED": ResultLost,
    "FAILED": TaskFailed,
    "DEAD": TaskDead,
    "CANCELLED": TaskCancelled,
    "TIMED_OUT": TaskTimedOut,
}


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refused:
    """The error that an answer of status 400 and more stands for."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        said = " ".join(body.decode("utf-8", "replace").split())[:_MAX_SHOWN_CHARS]
        problem = Problem(detail=said or f"the cluster answered {status}")
    problem.status = status
    kind = _BY_STATUS.get(status, ClusterError if status >= 500 else Refused)
    after = headers.get("retry-after", "")
    return kind(problem, float(after) if after.isdecimal() and len(after) < 10 else 0.0)


def unsuccessful(task: Result) -> ClientError:
    """The error for a task that ended without a readable result."""
    if task.state is None:
        detail = f"there is no task {quoted(task.id)}"
        return NotFound(Problem(title="There is no such object", status=404, detail=detail))
    return _BY_STATE.get(task.state, TaskUnsuccessful)(task)
