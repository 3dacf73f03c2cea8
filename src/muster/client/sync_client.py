"""`Client`: a cluster for programs that block."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import httpx

from muster.client import calls, following, gathering, shared
from muster.client.exchange import Broken, Close, Emit, Op, Pause, Read, Reply, Send, Step
from muster.client.gateways import Gateways
from muster.client.models import (
    Agent,
    Cluster,
    Event,
    Explanation,
    LogLine,
    Partial,
    Plan,
    Result,
    Task,
)
from muster.client.progress import Bar, NoBar, bar_for
from muster.client.task_bodies import PlanOptions, TaskOptions
from muster.client.transport import (
    DEFAULT_RETRY_FOR_S,
    DEFAULT_TIMEOUT_S,
    FILE_PIECE_BYTES,
    arguments_of,
    broken,
    headers_of,
    http_options,
    is_absence,
    settings_for,
    target_of,
    timeout_of,
)
from muster.skill import KvEntry

T = TypeVar("T")


class Client:
    """One cluster. May be used by several threads; close it, or use it in a `with` block.

    `timeout` bounds calls that say nothing else, in seconds and with all repetitions; `retry_for`
    is how long a request is repeated while the cluster does not answer.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        retry_for: float = DEFAULT_RETRY_FOR_S,
        transport: httpx.BaseTransport | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Where no URL or key is given: MUSTER_URL, MUSTER_API_KEY, else the CLI's profile.

        Raises NoCluster when none is known.
        """
        target = target_of(url, api_key, environ)
        self._gateways = Gateways(target.urls)
        self._settings = settings_for(timeout, retry_for, self._gateways)
        self._http = httpx.Client(transport=transport, **http_options(target))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- tasks ----------------------------------------------------------------------------------

    def submit(
        self,
        skill: str,
        input: Any = None,  # noqa: A002  the name that it has everywhere
        *,
        idempotency_key: str | None = None,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> str:
        """Submits a task; returns its id once it is durable.

        `options` are those of REST (`timeout` is the task's own). The request is repeated under
        one key, made here unless given, so that there is one task however often it is sent.
        """
        return self._run(
            calls.submit(
                self._settings, skill, input, options, idempotency_key, self._bound(call_timeout)
            )
        )

    def submit_many(
        self,
        skill: str,
        inputs: Iterable[Any],
        *,
        idempotency_key: str | None = None,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> list[str]:
        """Submits a task for each input, in batches; returns the ids in order.

        `call_timeout` is for each batch. When a batch fails, the error's `submitted` has the ids
        of those before it; the same call with the same `idempotency_key` completes it.
        """
        return self._run(
            calls.submit_many(
                self._settings, skill, inputs, options, idempotency_key, self._bound(call_timeout)
            )
        )

    @overload
    def run(
        self,
        skill: str,
        input: Any = None,
        *,
        returns: type[T],
        idempotency_key: str | None = None,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> T: ...
    @overload
    def run(
        self,
        skill: str,
        input: Any = None,
        *,
        returns: None = None,
        idempotency_key: str | None = None,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Any: ...
    def run(
        self,
        skill: str,
        input: Any = None,  # noqa: A002  as above
        *,
        returns: Any = None,
        idempotency_key: str | None = None,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Submits a task and waits for its result; see `submit` and `result`."""
        return self._run(
            calls.run(self._settings, skill, input, options, idempotency_key, call_timeout, returns)
        )

    @overload
    def map(
        self,
        skill: str,
        inputs: Iterable[Any],
        *,
        returns: type[T],
        progress: bool = True,
        ordered: bool = True,
        on_error: Literal["raise"] = "raise",
        in_flight: int = gathering.DEFAULT_IN_FLIGHT,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        skill: str,
        inputs: Iterable[Any],
        *,
        returns: Any = None,
        progress: bool = True,
        ordered: bool = True,
        on_error: Literal["raise", "return"] = "raise",
        in_flight: int = gathering.DEFAULT_IN_FLIGHT,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Iterator[Any]: ...
    def map(
        self,
        skill: str,
        inputs: Iterable[Any],
        *,
        returns: Any = None,
        progress: bool = True,
        ordered: bool = True,
        on_error: Literal["raise", "return"] = "raise",
        in_flight: int = gathering.DEFAULT_IN_FLIGHT,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Iterator[Any]:
        """The skill's result for each input, as an iterator; work begins with its first item.

        Inputs are drawn as there is room: at most `in_flight` are submitted and not yet handed
        out. Not `ordered`: results come as tasks end. `on_error`: the first task without a
        result raises, or its exception stands in the result's place; tasks already submitted go
        on in either case. The bar is drawn on terminals only.
        """
        bar = bar_for(skill, inputs, wanted=progress)
        mapped = gathering.Mapped(
            self._settings,
            skill,
            inputs,
            options,
            ordered=ordered,
            on_error=on_error,
            in_flight=in_flight,
            returns=returns,
            timeout_s=call_timeout,
            progress=bar,
        )
        return self._iterate(mapped.op(), bar)

    @overload
    def result(self, task: str, *, timeout: float | None = None, returns: type[T]) -> T: ...
    @overload
    def result(self, task: str, *, timeout: float | None = None, returns: None = None) -> Any: ...
    def result(self, task: str, *, timeout: float | None = None, returns: Any = None) -> Any:
        """Waits for a task's end by long-poll; returns its result, read as `returns` if given.

        Raises TaskUnsuccessful (TaskFailed, TaskCancelled, TaskTimedOut), DeadlinePassed after
        `timeout` seconds (None: waits on), NotFound.
        """
        return self._run(calls.result(self._settings, task, timeout, returns))

    def results(self, tasks: Iterable[str], *, timeout: float | None = None) -> Iterator[Result]:
        """What came of each task, once each, in the order in which they end.

        Nothing is raised for a task that failed: see `Result.succeeded`.
        """
        return self._iterate(gathering.results(self._settings, tasks, timeout))

    def stream(self, task: str, *, timeout: float | None = None) -> Iterator[Partial]:
        """The partial outputs of a generator as they come, until the task has ended.

        A new attempt begins again at index 0. Partial outputs are sent with best effort: one
        that is lost on the way is missing here, never in the result. Raises TaskUnsuccessful
        when the task fails.
        """
        return self._iterate(following.stream(self._settings, task, timeout))

    def task(
        self,
        task: str,
        *,
        wait: float = 0.0,
        with_input: bool = False,
        timeout: float | None = None,
    ) -> Task:
        """The task: at once, or when it has ended, or as it is after `wait` seconds (up to 600)."""
        return self._run(calls.task(self._settings, task, wait, with_input, self._bound(timeout)))

    def tasks(
        self,
        *,
        state: str | None = None,
        skill: str | None = None,
        agent: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Iterator[Task]:
        """Tasks that match all of what is given, newest first; `timeout` is for each page."""
        filters = {"state": state, "skill": skill, "agent": agent}
        return self._iterate(
            calls.tasks(self._settings, filters, labels or {}, self._bound(timeout))
        )

    def cancel(self, task: str, *, timeout: float | None = None) -> str:
        """Cancels a task; returns its state: a running attempt is being told.

        Raises Conflict when it has ended in another way.
        """
        return self._run(calls.cancel(self._settings, task, self._bound(timeout)))

    def explain(self, task: str, *, timeout: float | None = None) -> Explanation:
        """Why a task waits."""
        return self._run(calls.explain(self._settings, task, self._bound(timeout)))

    def plan(
        self,
        tasks: Iterable[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        **options: Unpack[PlanOptions],
    ) -> Plan:
        """Where tasks (as REST has them: `{"skill": "echo", …}`) would go now; places none.

        `timeout` should leave room for the option `budget`, which is 5 s when it is not given.
        """
        return self._run(calls.plan(self._settings, tasks, options, self._bound(timeout)))

    def logs(
        self, task: str, *, follow: bool = False, attempt: int = 0, timeout: float | None = None
    ) -> Iterator[LogLine]:
        """What a task has written; with `follow` also what it will write. `attempt` 0: all."""
        if follow:
            return self._iterate(following.follow_logs(self._settings, task, attempt, timeout))
        return self._iterate(calls.logs(self._settings, task, attempt, self._bound(timeout)))

    # --- the cluster ----------------------------------------------------------------------------

    def events(
        self,
        *,
        task: str | None = None,
        state: str | None = None,
        after: str = "",
        timeout: float | None = None,
    ) -> Iterator[Event]:
        """Everything that happens, without end; `after` an event's id, or "0" for the oldest."""
        return self._iterate(following.events(self._settings, task, state, after, timeout))

    def agents(self, *, timeout: float | None = None) -> Iterator[Agent]:
        """The agents, by id."""
        return self._iterate(calls.agents(self._settings, self._bound(timeout)))

    def agent(self, agent: str, *, timeout: float | None = None) -> Agent:
        """One agent, with its skills' schemas and what it was judged by."""
        return self._run(calls.agent(self._settings, agent, self._bound(timeout)))

    def cluster(self, *, timeout: float | None = None) -> Cluster:
        """The cluster's figures."""
        return self._run(calls.cluster(self._settings, self._bound(timeout)))

    # --- shared data ----------------------------------------------------------------------------

    def kv_get(self, key: str, *, timeout: float | None = None) -> KvEntry | None:
        """A shared value with its etag; None when there is no such key."""
        return self._run(shared.kv_get(self._settings, key, self._bound(timeout)))

    def kv_put(
        self,
        key: str,
        value: Any,
        *,
        if_match: str = "",
        if_absent: bool = False,
        timeout: float | None = None,
    ) -> str:
        """Writes a shared value and returns its new etag. Bytes are kept as they are, else JSON.

        Raises PreconditionFailed when the etag is another one, or the key exists. A conditional
        write whose answer is lost raises Unreachable: read the key to see whether it was made.
        """
        return self._run(
            shared.kv_put(self._settings, key, value, if_match, if_absent, self._bound(timeout))
        )

    def kv_delete(self, key: str, *, if_match: str = "", timeout: float | None = None) -> bool:
        """Whether there was such a key. Raises PreconditionFailed when the etag is another one."""
        return self._run(shared.kv_delete(self._settings, key, if_match, self._bound(timeout)))

    def kv_keys(self, prefix: str = "", *, timeout: float | None = None) -> Iterator[str]:
        """Names of shared values that begin so, in order."""
        return self._iterate(shared.kv_keys(self._settings, prefix, self._bound(timeout)))

    def blob_put(self, content: bytes | Path, *, timeout: float | None = None) -> str:
        """Stores bytes, or the file at a path, and returns the name: its SHA-256.

        Raise `timeout` for what takes longer than the client's.
        """
        return self._run(shared.blob_put(self._settings, content, self._bound(timeout)))

    def blob_get(self, sha256: str, *, timeout: float | None = None) -> bytes:
        """A blob's content, checked against its name; raises NotFound."""
        return self._run(shared.blob_get(self._settings, sha256, self._bound(timeout)))

    def blob_delete(self, sha256: str, *, timeout: float | None = None) -> bool:
        """Keeps a blob no longer; whether it was kept. Results that refer to it still do."""
        return self._run(shared.blob_delete(self._settings, sha256, self._bound(timeout)))

    # --- how steps are performed ----------------------------------------------------------------

    def _bound(self, timeout: float | None) -> float:
        return self._settings.timeout_s if timeout is None else timeout

    def _run(self, op: Op[T]) -> T:
        """The value of a call that emits nothing."""
        steps = self._iterate(op)
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
        raise AssertionError("a call that is not iterated over has emitted something")

    def _iterate(self, op: Op[T], bar: Bar | NoBar | None = None) -> Generator[Any, None, T]:
        stream = _Stream()
        answer: Any = None
        try:
            while True:
                try:
                    step = op.send(answer)
                except StopIteration as end:
                    value: T = end.value
                    return value
                if isinstance(step, Emit):
                    answer = None
                    yield step.item
                else:
                    answer = self._perform(step, stream)
        finally:
            op.close()
            stream.close()
            if bar is not None:
                bar.close()

    def _perform(self, step: Step, stream: _Stream) -> Any:
        if isinstance(step, Send | Read):
            if isinstance(step, Send):
                stream.gateway = self._gateways.url
                answer: Reply | Broken | bytes | None = self._send(step, stream)
            else:
                answer = stream.read()
            if is_absence(answer):
                self._gateways.turn_from(stream.gateway)
            return answer
        if isinstance(step, Pause):
            time.sleep(step.seconds)
        else:
            assert isinstance(step, Close)
            stream.close()
        return None

    def _send(self, step: Send, stream: _Stream) -> Reply | Broken:
        content = step.request.content
        try:
            request = self._http.build_request(
                **arguments_of(step.request, stream.gateway),
                content=_pieces(content) if isinstance(content, Path) else content,
                timeout=timeout_of(step),
            )
            response = self._http.send(request, stream=True)
            if step.stream and response.status_code < 400:
                stream.open(response)
                return Reply(response.status_code, headers_of(response))
            try:
                body = bytearray()
                for piece in response.iter_bytes():
                    body += piece
                    if self._settings.clock() > step.ends_s:
                        return Broken("the answer took too long")
            finally:
                response.close()
        except (httpx.TransportError, httpx.StreamError) as error:
            return broken(error)
        return Reply(response.status_code, headers_of(response), bytes(body))


class _Stream:
    """The one answer of a call that is read piece by piece, and the gateway that was asked last."""

    def __init__(self) -> None:
        self.gateway = ""
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def open(self, response: httpx.Response) -> None:
        self.close()
        self._response, self._pieces = response, response.iter_bytes()

    def read(self) -> bytes | Broken | None:
        try:
            return next(self._pieces, None)
        except (httpx.TransportError, httpx.StreamError) as error:
            return broken(error)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        self._pieces = iter(())


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(FILE_PIECE_BYTES):
            yield piece
