"""Many tasks: their results as they end, and inputs mapped over a skill with a bound in flight.

Results are gathered by `POST /v1/results`, which takes up to 10,000 ids and answers a line for
each as it ends: there is no request per task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

import msgspec

from muster.client.calls import GRACE_S, submit_batch, value_of
from muster.client.errors import ClientError, Unreachable, Unreadable
from muster.client.exchange import (
    Broken,
    Close,
    Deadline,
    Emit,
    Op,
    Pause,
    Read,
    Request,
    Settings,
    as_wait,
    exchange,
)
from muster.client.models import Result
from muster.client.sse import LineSplitter
from muster.client.task_bodies import BATCH_TASKS, BodyMaker, TaskOptions, batches
from muster.domain.errors import InvalidInput
from muster.domain.task import MAX_BATCH_TASKS

# While some wait to be asked for, those that are asked for are listened to no longer than this.
_SHORT_POLL_S: Final = 2.0
DEFAULT_IN_FLIGHT: Final = 4 * BATCH_TASKS
_ENCODE: Final = msgspec.json.Encoder().encode
_RESULT: Final = msgspec.json.Decoder(Result)


class _Said(msgspec.Struct):
    message: str = ""


class _LastLine(msgspec.Struct):
    """What is still open, and what broke the gathering off."""

    open: list[str]
    error: _Said | None = None


_LAST_LINE: Final = msgspec.json.Decoder(_LastLine)


class Progress(Protocol):
    """Hears how a map goes."""

    def submitted(self, tasks: int) -> None: ...
    def ended(self, tasks: int, failed: int) -> None: ...
    def close(self) -> None: ...


def gather(
    settings: Settings,
    waiting: dict[str, None],
    deadline: Deadline,
    on_results: Callable[[list[Result]], Op[None]],
    more_to_come: Callable[[], bool],
) -> Op[None]:
    """Until `waiting` is empty: takes ended tasks out of it and hands them to `on_results`.

    `on_results` may add to `waiting`. A stream that breaks off is taken up again, until streams
    have broken off for `settings.retry_for_s` without a result between them.
    """
    broken_s: float | None = None
    tries = 0
    while waiting:
        asked = set(islice(waiting, MAX_BATCH_TASKS))
        alone = len(asked) == len(waiting) and not more_to_come()
        wait_s = min(settings.long_poll_s if alone else _SHORT_POLL_S, deadline.left_s())
        request = Request(
            "POST",
            "/v1/results",
            headers={"Content-Type": "application/json"},
            content=_ENCODE({"ids": list(asked), "wait": as_wait(wait_s)}),
        )
        quiet_s = wait_s + GRACE_S
        yield from exchange(settings, request, deadline, quiet_s=quiet_s, due_s=wait_s, stream=True)
        lines = LineSplitter()
        why = "the results ended early"
        while True:
            piece = yield Read()
            if piece is None:
                break
            if isinstance(piece, Broken):
                why = piece.why
                break
            ended, last = _read(lines.feed(piece), waiting)
            if last is not None:
                # Read on to the stream's end, so that the connection serves again.
                why = last.error.message if last.error is not None else ""
            if ended:
                asked.difference_update([r.id for r in ended])
                broken_s, tries = None, 0
                yield from on_results(ended)
                unheard = len(waiting) - len(asked)
                if last is None and len(asked) < min(unheard, MAX_BATCH_TASKS // 2):
                    why = ""
                    break
        yield Close()
        if len(waiting) > MAX_BATCH_TASKS:
            # The next in line are asked for first, so that slow ones hide nobody.
            for ident in asked:
                waiting.pop(ident, None)
                waiting[ident] = None
        if not why:
            # That nothing has ended yet is an answer, too.
            broken_s, tries = None, 0
            continue
        tries += 1
        broken_s = settings.clock() if broken_s is None else broken_s
        if settings.clock() - broken_s > settings.retry_for_s:
            raise Unreachable(why)
        yield Pause(settings.delay_s(tries))


def _read(
    raw_lines: list[bytes], waiting: dict[str, None]
) -> tuple[list[Result], _LastLine | None]:
    """Results that were waited for, and the last line when it is among these."""
    ended: list[Result] = []
    for raw in raw_lines:
        if not raw.strip():
            continue
        try:
            try:
                result = _RESULT.decode(raw)
            except msgspec.ValidationError:
                return ended, _LAST_LINE.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unreadable(f"a line of the results cannot be read: {error}") from error
        if result.id in waiting:
            del waiting[result.id]
            ended.append(result)
    return ended, None


def results(settings: Settings, ids: Iterable[str], timeout_s: float | None) -> Op[None]:
    """Emits each task's Result once, as they end."""
    waiting = dict.fromkeys(ids)
    deadline = settings.deadline(f"waiting for {len(waiting)} tasks", timeout_s)

    def emit(ended: list[Result]) -> Op[None]:
        for result in ended:
            yield Emit(result)

    yield from gather(settings, waiting, deadline, emit, lambda: False)


class Mapped:
    """One `map`: which inputs are under way, which results wait for their turn."""

    def __init__(
        self,
        settings: Settings,
        skill: str,
        inputs: Iterable[Any],
        options: TaskOptions,
        *,
        ordered: bool,
        on_error: str,
        in_flight: int,
        returns: Any,
        timeout_s: float | None,
        progress: Progress,
    ) -> None:
        if on_error not in ("raise", "return"):
            raise InvalidInput("on_error", on_error, "raise or return")
        if not 1 <= in_flight <= MAX_BATCH_TASKS:
            raise InvalidInput("in_flight", in_flight, f"1 to {MAX_BATCH_TASKS}")
        self._settings, self._progress = settings, progress
        self._ordered, self._raises, self._returns = ordered, on_error == "raise", returns
        self._in_flight = in_flight
        # Small enough that room for one comes soon, large enough that a request pays.
        self._batch = max(1, min(BATCH_TASKS, in_flight // 4))
        self._bodies: Iterator[bytes] = BodyMaker(skill, options).each(inputs)
        self._exhausted = False
        self._key, self._batches = settings.new_key(), 0
        self._waiting: dict[str, None] = {}
        self._index: dict[str, int] = {}
        self._done: dict[int, Result] = {}
        self._submitted = self._emitted = 0
        self._deadline = settings.deadline(f"mapping skill {skill}", timeout_s)

    def op(self) -> Op[None]:
        """Emits values, or with on_error="return" exceptions in their place."""
        yield from self._fill()
        yield from gather(
            self._settings, self._waiting, self._deadline, self._take, lambda: not self._exhausted
        )

    def _fill(self) -> Op[None]:
        """Submits while there is room for a batch. What is not yet handed out takes room, too."""
        while not self._exhausted:
            room = self._in_flight - (self._submitted - self._emitted)
            if room < self._batch:
                return
            bodies = list(islice(self._bodies, self._batch))
            self._exhausted = len(bodies) < self._batch
            for batch in batches(bodies):
                key = f"{self._key}-{self._batches}"
                self._batches += 1
                ids = yield from submit_batch(self._settings, batch, key, self._deadline)
                for ident in ids:
                    self._waiting[ident] = None
                    self._index[ident] = self._submitted
                    self._submitted += 1
                self._progress.submitted(self._submitted)

    def _take(self, ended: list[Result]) -> Op[None]:
        failed = 0
        for result in ended:
            self._done[self._index.pop(result.id)] = result
            failed += not result.succeeded
        self._progress.ended(len(ended), failed)
        # First the cluster gets new work, then the caller what is ready; and once more, because
        # what was handed out has made room.
        yield from self._fill()
        for result in self._ready():
            yield Emit(self._outcome(result))
        yield from self._fill()

    def _ready(self) -> Iterator[Result]:
        if not self._ordered:
            ready, self._done = self._done, {}
            for result in ready.values():
                self._emitted += 1
                yield result
            return
        while self._emitted in self._done:
            result = self._done.pop(self._emitted)
            self._emitted += 1
            yield result

    def _outcome(self, result: Result) -> Any:
        try:
            return value_of(result, self._returns)
        except ClientError as error:
            if self._raises:
                raise
            return error
