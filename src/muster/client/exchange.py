"""One request with its repetitions, as steps that a sync or an async client performs.

A call is a generator: it yields steps, is sent what came of them, and returns the call's value.
Time and chance come in through `Settings`; nothing here waits or connects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from muster.client.errors import DeadlinePassed, Unreachable, Unreadable, refusal
from muster.client.gateways import PASSING, patience_s

T = TypeVar("T")

_FIRST_DELAY_S: Final = 0.1
# A gateway that was killed is back within seconds; longer pauses would only add waiting.
_MAX_DELAY_S: Final = 3.0
# An ordinary request: the slowest answer, an overload of storage, comes within 30 s.
ANSWER_S: Final = 60.0
# Of one long-poll; proxies cut longer silences. Then it is asked again.
_LONG_POLL_S: Final = 30.0
# Where there are several gateways: until one that has stopped is noticed.
_SHARED_POLL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """`content` may be a file, which is streamed. Not `repeatable`: see `exchange`."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Path | None = None
    repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Send:
    """Answered by Reply or Broken. With `stream` a good reply's body is left to Read.

    `quiet_s` bounds each silence, `ends_s` (on the clock of Settings) the whole.
    """

    request: Request
    quiet_s: float
    ends_s: float
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """The next piece of the stream: bytes, None at its end, or Broken."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Waits."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit:
    """Hands an item to whoever iterates over the call."""

    item: Any


@dataclass(frozen=True, slots=True)
class Close:
    """Closes the stream, if one is open."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `headers` are found under lower case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Broken:
    """No answer. Without `arrived` the request certainly was not received."""

    why: str
    arrived: bool = True


Step: TypeAlias = Send | Read | Pause | Emit | Close
Op: TypeAlias = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Settings:
    """What all calls of a client share. Seconds; `random` gives 0 to 1.

    `gateways`: how many there are to speak to.
    """

    timeout_s: float
    retry_for_s: float
    clock: Callable[[], float]
    random: Callable[[], float]
    new_key: Callable[[], str]
    gateways: int = 1

    @property
    def long_poll_s(self) -> float:
        """How long one request waits for what may take long."""
        return _LONG_POLL_S if self.gateways == 1 else _SHARED_POLL_S

    def deadline(self, what: str, timeout_s: float | None) -> Deadline:
        """Begins now; None = without end."""
        seconds = math.inf if timeout_s is None else timeout_s
        return Deadline(what, seconds, self.clock() + seconds, self.clock)

    def delay_s(self, tries: int) -> float:
        """Full jitter: anything from nothing to a bound that doubles."""
        bound_s: float = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(tries, 10))
        return self.random() * bound_s


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must be over."""

    what: str
    seconds: float
    ends_s: float
    clock: Callable[[], float]

    def left_s(self) -> float:
        """What is left; raises DeadlinePassed when nothing is."""
        left = self.ends_s - self.clock()
        if left <= 0:
            raise DeadlinePassed(self.what, self.seconds)
        return left


def exchange(
    settings: Settings,
    request: Request,
    deadline: Deadline,
    *,
    quiet_s: float = ANSWER_S,
    due_s: float = 0.0,
    stream: bool = False,
) -> Op[Reply]:
    """The answer to a request, which is repeated where that is safe and promises anything.

    Repeated: what has not arrived, and 429; if `repeatable` also what may have arrived, and 502
    to 504. Nothing else. The pause is what Retry-After names plus full jitter; repetitions end
    after `settings.retry_for_s`, or at the deadline.

    `quiet_s` bounds the silence of the answer; where there are other gateways and it may be
    repeated, it is sent to the next one soon after it was due.
    """
    give_up_s = min(settings.clock() + settings.retry_for_s, deadline.ends_s)
    tries = 0
    while True:
        left_s = deadline.left_s()
        others = settings.gateways if request.repeatable else 1
        silence_s = patience_s(others, quiet_s, due_s, tries)
        answer = yield Send(request, min(silence_s, left_s), deadline.ends_s, stream)
        pause_s = 0.0
        error: Exception
        if isinstance(answer, Reply):
            if answer.status < 400:
                return answer
            refused = refusal(answer.status, answer.headers, answer.body)
            again = answer.status == 429 or (answer.status in PASSING and request.repeatable)
            error, pause_s = refused, refused.retry_after_s
        else:
            assert isinstance(answer, Broken)
            deadline.left_s()
            error = Unreachable(answer.why)
            again = request.repeatable or not answer.arrived
        tries += 1
        pause_s += settings.delay_s(tries)
        if not again or settings.clock() + pause_s >= give_up_s:
            raise error
        yield Pause(pause_s)


def decoded(reply: Reply, kind: type[T]) -> T:
    """The JSON body as a model; raises Unreadable."""
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        shown = reply.headers.get("content-type", "nothing")
        raise Unreadable(
            f"an answer of type {shown} cannot be read ({error}); is it a Muster?"
        ) from error


def as_wait(seconds: float) -> str:
    """A duration as REST takes it."""
    return f"{max(0, math.floor(seconds * 1000))}ms"
