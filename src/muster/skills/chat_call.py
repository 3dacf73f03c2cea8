"""What `chat` does when it is called: asks, waits for a busy provider, and passes on what it says.

The key goes into the request's header and nowhere else: not into results, errors or logs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

import msgspec
import orjson

from muster.domain.errors import DeadlineExceeded, InvalidInput, TooLarge, Unavailable
from muster.outbound.exchange import Answer, Limits
from muster.outbound.requests import MAX_BODY_BYTES, OutboundRefused, OutboundRequest, Target
from muster.skill import InputRejected, PermanentFailure, Result
from muster.skills.chat import DEFAULT_TIMEOUT_S, MAX_MESSAGES, MAX_TIMEOUT_S
from muster.skills.chat_settings import ChatSettings, parse_base
from muster.skills.chat_stream import (
    Completion,
    EventData,
    MalformedStream,
    ProviderError,
    error_text,
    retry_after_s,
    retryable,
)
from muster.skills.http_call import as_input, bounded, outbound

# Framing included; the longest answers of today's models have a tenth of it.
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
# What is read of an answer that says no.
_MAX_ERROR_BYTES: Final = 64 * 1024
# A provider that is still busy then is busy for the next attempt, which may be elsewhere.
MAX_REQUESTS: Final = 5
_UNSET: Final = msgspec.UNSET

Progress = Callable[[float, str], None]


class ChatInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Input of `chat`. All but the last two goes to the provider as it is."""

    messages: list[dict[str, Any]]
    model: str | msgspec.UnsetType = _UNSET
    temperature: float | msgspec.UnsetType = _UNSET
    top_p: float | msgspec.UnsetType = _UNSET
    max_tokens: int | msgspec.UnsetType = _UNSET
    max_completion_tokens: int | msgspec.UnsetType = _UNSET
    stop: str | list[str] | msgspec.UnsetType = _UNSET
    seed: int | msgspec.UnsetType = _UNSET
    presence_penalty: float | msgspec.UnsetType = _UNSET
    frequency_penalty: float | msgspec.UnsetType = _UNSET
    response_format: dict[str, Any] | msgspec.UnsetType = _UNSET
    tools: list[dict[str, Any]] | msgspec.UnsetType = _UNSET
    tool_choice: str | dict[str, Any] | msgspec.UnsetType = _UNSET
    timeout_s: float = DEFAULT_TIMEOUT_S
    base_url: str | msgspec.UnsetType = _UNSET


class _Busy(Exception):
    """The provider did not take the request; `wait_s` None = it does not say when it will."""

    def __init__(self, message: str, wait_s: float | None) -> None:
        self.wait_s = wait_s
        super().__init__(message)


class _Asking:
    """One task's request, checked in full."""

    def __init__(self, value: Any, settings: ChatSettings) -> None:
        found = as_input(value, ChatInput)
        bounded("input.timeout_s", found.timeout_s, 0.001, MAX_TIMEOUT_S)
        bounded("input.messages", len(found.messages), 1, MAX_MESSAGES)
        self.timeout_s = found.timeout_s
        self.model = settings.model if isinstance(found.model, msgspec.UnsetType) else found.model
        if not self.model:
            raise InvalidInput("input.model", self.model, "a model is needed; the agent has none")
        base = _base(found, settings)
        self._key = settings.key() if base == settings.base else ""
        wanted = msgspec.to_builtins(_for_provider(found))
        body = orjson.dumps(
            {
                **wanted,
                "model": self.model,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge("input", len(body), f"at most {MAX_BODY_BYTES} bytes")
        headers = [
            ("Content-Type", "application/json"),
            ("Accept", "text/event-stream, application/json"),
        ]
        if self._key:
            headers.append(("Authorization", f"Bearer {self._key}"))
        path = base.path.rstrip("/") + "/chat/completions"
        self.request = OutboundRequest("POST", replace(base, path=path), tuple(headers), body)

    def without_key(self, text: str) -> str:
        """Providers quote what they were sent."""
        return text.replace(self._key, "…") if self._key else text


def _for_provider(found: ChatInput) -> ChatInput:
    """The input without what is for the agent alone."""
    return msgspec.structs.replace(found, timeout_s=DEFAULT_TIMEOUT_S, base_url=_UNSET)


def _base(found: ChatInput, settings: ChatSettings) -> Target:
    if isinstance(found.base_url, msgspec.UnsetType):
        if settings.base is None:
            raise InvalidInput("input.base_url", "", "an address is needed; the agent has none")
        return settings.base
    base = parse_base(found.base_url, "input.base_url")
    if base != settings.base and not settings.any_address:
        limit = "this agent asks its own provider only; leave it out"
        raise InvalidInput("input.base_url", found.base_url, limit)
    return base


async def converse(value: Any, progress: Progress) -> AsyncGenerator[Any, None]:
    """Pieces of the answer, last the `Result`.

    What would fail again raises InputRejected or PermanentFailure; a provider that is busy,
    broken or silent raises Unavailable or DeadlineExceeded, and the task may be retried.
    """
    try:
        asking = _Asking(value, ChatSettings.from_env(os.environ))
    except InvalidInput as error:
        raise InputRejected(error.field, error.value, error.limit) from None
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + asking.timeout_s
    host = asking.request.target.host
    for request_number in range(1, MAX_REQUESTS + 1):
        left_s = deadline_s - loop.time()
        if left_s <= 0:
            raise DeadlineExceeded(host, asking.timeout_s)
        try:
            # Raised, if at all, before the first piece: nothing is said twice.
            async with aclosing(_said(asking, left_s)) as said:
                async for piece in said:
                    yield piece
        except _Busy as busy:
            wait_s, text = busy.wait_s, str(busy)
        else:
            return
        if wait_s is None or request_number == MAX_REQUESTS:
            raise Unavailable(host, text)
        if loop.time() + wait_s >= deadline_s:
            more = f"it asks to wait {wait_s:g} s, longer than is left of {asking.timeout_s:g} s"
            raise Unavailable(host, f"{text}; {more}", wait_s)
        progress(-1.0, f"waiting {wait_s:g} s for {host}: {text}")
        await asyncio.sleep(wait_s)


async def _said(asking: _Asking, timeout_s: float) -> AsyncGenerator[Any, None]:
    limits = Limits(timeout_s, MAX_ANSWER_BYTES, redirects=0)
    host = asking.request.target.host
    try:
        async with outbound().open(asking.request, limits) as answer:
            if answer.status != 200:
                await _refused(asking, answer)
            completion = Completion(asking.model)
            async with aclosing(_pieces(answer, completion)) as pieces:
                async for piece in pieces:
                    yield piece
    except (MalformedStream, ProviderError) as error:
        raise Unavailable(host, asking.without_key(str(error))) from None
    except (OutboundRefused, TooLarge) as error:
        raise PermanentFailure(str(error)) from None
    yield Result(completion.result())


async def _pieces(answer: Answer, completion: Completion) -> AsyncGenerator[str, None]:
    kind = answer.header("content-type").partition(";")[0].strip().lower()
    if kind == "application/json":
        # Some servers take no notice of `stream`.
        if text := completion.take_whole(await answer.read()):
            yield text
        return
    if kind != "text/event-stream":
        raise MalformedStream(f"it answers with {kind or 'no content type'}, not an event stream")
    events = EventData()
    async with aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            # What came together is passed on together: one partial output, not one for each token.
            if text := "".join([completion.take(data) for data in events.feed(chunk)]):
                yield text
            if completion.done:
                return
    if not completion.complete:
        raise MalformedStream("the answer broke off in the middle")


async def _refused(asking: _Asking, answer: Answer) -> None:
    """Raises what a status other than 200 means."""
    said = b""
    async with aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            said += chunk
            if len(said) > _MAX_ERROR_BYTES:
                break
    text = asking.without_key(f"{answer.status} {_error_of(said)}")
    if retryable(answer.status):
        raise _Busy(text, retry_after_s(answer.header("retry-after"), time.time()))
    raise PermanentFailure(f"{asking.request.target.host} refuses the request: {text}")


def _error_of(said: bytes) -> str:
    try:
        return error_text(orjson.loads(said))
    except orjson.JSONDecodeError:
        return error_text(said.decode("utf-8", "replace"))
