"""`AsyncClient`: a cluster for programs that run on an asyncio loop."""

# `timeout` is the name in both clients, and covers repetitions.
# ruff: noqa: ASYNC109

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
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


class AsyncClient:
    """As `Client`: the same methods, awaited, and iterated over with `async for`.

    Leave an iterator early through `contextlib.aclosing`, so that its connection is closed then.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        retry_for: float = DEFAULT_RETRY_FOR_S,
        transport: httpx.AsyncBaseTransport | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """As `Client`."""
        target = target_of(url, api_key, environ)
        self._gateways = Gateways(target.urls)
        self._settings = settings_for(timeout, retry_for, self._gateways)
        self._http = httpx.AsyncClient(transport=transport, **http_options(target))

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # --- tasks ----------------------------------------------------------------------------------

    async def submit(
        self,
        skill: str,
        input: Any = None,  # noqa: A002  the name that it has everywhere
        *,
        idempotency_key: str | None = None,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> str:
        """As `Client.submit`."""
        return await self._run(
            calls.submit(
                self._settings, skill, input, options, idempotency_key, self._bound(call_timeout)
            )
        )

    async def submit_many(
        self,
        skill: str,
        inputs: Iterable[Any],
        *,
        idempotency_key: str | None = None,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> list[str]:
        """As `Client.submit_many`."""
        return await self._run(
            calls.submit_many(
                self._settings, skill, inputs, options, idempotency_key, self._bound(call_timeout)
            )
        )

    @overload
    async def run(
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
    async def run(
        self,
        skill: str,
        input: Any = None,
        *,
        returns: None = None,
        idempotency_key: str | None = None,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Any: ...
    async def run(
        self,
        skill: str,
        input: Any = None,  # noqa: A002  as above
        *,
        returns: Any = None,
        idempotency_key: str | None = None,
        call_timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """As `Client.run`."""
        return await self._run(
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
    ) -> AsyncIterator[T]: ...
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
    ) -> AsyncIterator[Any]: ...
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
    ) -> AsyncIterator[Any]:
        """As `Client.map`."""
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
    async def result(self, task: str, *, timeout: float | None = None, returns: type[T]) -> T: ...
    @overload
    async def result(
        self, task: str, *, timeout: float | None = None, returns: None = None
    ) -> Any: ...
    async def result(self, task: str, *, timeout: float | None = None, returns: Any = None) -> Any:
        """As `Client.result`."""
        return await self._run(calls.result(self._settings, task, timeout, returns))

    def results(
        self, tasks: Iterable[str], *, timeout: float | None = None
    ) -> AsyncIterator[Result]:
        """As `Client.results`."""
        return self._iterate(gathering.results(self._settings, tasks, timeout))

    def stream(self, task: str, *, timeout: float | None = None) -> AsyncIterator[Partial]:
        """As `Client.stream`."""
        return self._iterate(following.stream(self._settings, task, timeout))

    async def task(
        self,
        task: str,
        *,
        wait: float = 0.0,
        with_input: bool = False,
        timeout: float | None = None,
    ) -> Task:
        """As `Client.task`."""
        return await self._run(
            calls.task(self._settings, task, wait, with_input, self._bound(timeout))
        )

    def tasks(
        self,
        *,
        state: str | None = None,
        skill: str | None = None,
        agent: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Task]:
        """As `Client.tasks`."""
        filters = {"state": state, "skill": skill, "agent": agent}
        return self._iterate(
            calls.tasks(self._settings, filters, labels or {}, self._bound(timeout))
        )

    async def cancel(self, task: str, *, timeout: float | None = None) -> str:
        """As `Client.cancel`."""
        return await self._run(calls.cancel(self._settings, task, self._bound(timeout)))

    async def explain(self, task: str, *, timeout: float | None = None) -> Explanation:
        """As `Client.explain`."""
        return await self._run(calls.explain(self._settings, task, self._bound(timeout)))

    async def plan(
        self,
        tasks: Iterable[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        **options: Unpack[PlanOptions],
    ) -> Plan:
        """As `Client.plan`."""
        op = calls.plan(self._settings, tasks, options, self._bound(timeout))
        return await self._run(op)

    def logs(
        self, task: str, *, follow: bool = False, attempt: int = 0, timeout: float | None = None
    ) -> AsyncIterator[LogLine]:
        """As `Client.logs`."""
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
    ) -> AsyncIterator[Event]:
        """As `Client.events`."""
        return self._iterate(following.events(self._settings, task, state, after, timeout))

    def agents(self, *, timeout: float | None = None) -> AsyncIterator[Agent]:
        """As `Client.agents`."""
        return self._iterate(calls.agents(self._settings, self._bound(timeout)))

    async def agent(self, agent: str, *, timeout: float | None = None) -> Agent:
        """As `Client.agent`."""
        return await self._run(calls.agent(self._settings, agent, self._bound(timeout)))

    async def cluster(self, *, timeout: float | None = None) -> Cluster:
        """As `Client.cluster`."""
        return await self._run(calls.cluster(self._settings, self._bound(timeout)))

    # --- shared data ----------------------------------------------------------------------------

    async def kv_get(self, key: str, *, timeout: float | None = None) -> KvEntry | None:
        """As `Client.kv_get`."""
        return await self._run(shared.kv_get(self._settings, key, self._bound(timeout)))

    async def kv_put(
        self,
        key: str,
        value: Any,
        *,
        if_match: str = "",
        if_absent: bool = False,
        timeout: float | None = None,
    ) -> str:
        """As `Client.kv_put`."""
        return await self._run(
            shared.kv_put(self._settings, key, value, if_match, if_absent, self._bound(timeout))
        )

    async def kv_delete(
        self, key: str, *, if_match: str = "", timeout: float | None = None
    ) -> bool:
        """As `Client.kv_delete`."""
        return await self._run(
            shared.kv_delete(self._settings, key, if_match, self._bound(timeout))
        )

    def kv_keys(self, prefix: str = "", *, timeout: float | None = None) -> AsyncIterator[str]:
        """As `Client.kv_keys`."""
        return self._iterate(shared.kv_keys(self._settings, prefix, self._bound(timeout)))

    async def blob_put(self, content: bytes | Path, *, timeout: float | None = None) -> str:
        """As `Client.blob_put`."""
        return await self._run(shared.blob_put(self._settings, content, self._bound(timeout)))

    async def blob_get(self, sha256: str, *, timeout: float | None = None) -> bytes:
        """As `Client.blob_get`."""
        return await self._run(shared.blob_get(self._settings, sha256, self._bound(timeout)))

    async def blob_delete(self, sha256: str, *, timeout: float | None = None) -> bool:
        """As `Client.blob_delete`."""
        return await self._run(shared.blob_delete(self._settings, sha256, self._bound(timeout)))

    # --- how steps are performed ----------------------------------------------------------------

    def _bound(self, timeout: float | None) -> float:
        return self._settings.timeout_s if timeout is None else timeout

    async def _run(self, op: Op[T]) -> T:
        """The value of a call that emits nothing."""
        stream = _Stream()
        answer: Any = None
        try:
            while True:
                try:
                    step = op.send(answer)
                except StopIteration as end:
                    value: T = end.value
                    return value
                answer = await self._perform(step, stream)
        finally:
            op.close()
            await stream.close()

    async def _iterate(self, op: Op[None], bar: Bar | NoBar | None = None) -> AsyncGenerator[Any]:
        stream = _Stream()
        answer: Any = None
        try:
            while True:
                try:
                    step = op.send(answer)
                except StopIteration:
                    return
                if isinstance(step, Emit):
                    answer = None
                    yield step.item
                else:
                    answer = await self._perform(step, stream)
        finally:
            op.close()
            if bar is not None:
                bar.close()
            await stream.close()

    async def _perform(self, step: Step, stream: _Stream) -> Any:
        if isinstance(step, Send | Read):
            if isinstance(step, Send):
                stream.gateway = self._gateways.url
                answer: Reply | Broken | bytes | None = await self._send(step, stream)
            else:
                answer = await stream.read()
            if is_absence(answer):
                self._gateways.turn_from(stream.gateway)
            return answer
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        else:
            assert isinstance(step, Close)
            await stream.close()
        return None

    async def _send(self, step: Send, stream: _Stream) -> Reply | Broken:
        content = step.request.content
        try:
            request = self._http.build_request(
                **arguments_of(step.request, stream.gateway),
                content=_pieces(content) if isinstance(content, Path) else content,
                timeout=timeout_of(step),
            )
            response = await self._http.send(request, stream=True)
            if step.stream and response.status_code < 400:
                await stream.open(response)
                return Reply(response.status_code, headers_of(response))
            try:
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if self._settings.clock() > step.ends_s:
                        return Broken("the answer took too long")
            finally:
                await response.aclose()
        except (httpx.TransportError, httpx.StreamError) as error:
            return broken(error)
        return Reply(response.status_code, headers_of(response), bytes(body))


class _Stream:
    """The one answer of a call that is read piece by piece, and the gateway that was asked last."""

    def __init__(self) -> None:
        self.gateway = ""
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def open(self, response: httpx.Response) -> None:
        await self.close()
        self._response, self._pieces = response, response.aiter_bytes()

    async def read(self) -> bytes | Broken | None:
        assert self._pieces is not None
        try:
            return await anext(self._pieces, None)
        except (httpx.TransportError, httpx.StreamError) as error:
            return broken(error)

    async def close(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, FILE_PIECE_BYTES):
            yield piece
    finally:
        file.close()
