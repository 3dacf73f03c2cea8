"""Reading requests: bodies with bounds, query parameters with errors that name them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from starlette.requests import ClientDisconnect, Request

from muster.domain.durations import parse_duration_ms
from muster.domain.errors import InvalidInput, TooLarge
from muster.domain.task import MAX_BODY_BYTES, MAX_LABELS, parse_labels
from muster_gateway.problems import UnsupportedMediaType

# Longer waits belong into a loop at the client: proxies on the way cut them anyway.
MAX_WAIT_MS: Final = 10 * 60 * 1000
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000

# An honest mistake is drained and answered; a flood is cut off.
_DRAIN_BYTES: Final = 32 * 1024 * 1024
_DRAIN_S: Final = 3.0

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"


def media_type(request: Request) -> str:
    """The body's type in lower case without parameters; empty when none is given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request, *others: str) -> str:
    """The body's type, JSON when none is given. Raises UnsupportedMediaType."""
    given = media_type(request) or JSON
    if given not in (JSON, *others):
        limit = f"must be {' or '.join((JSON, *others))}"
        raise UnsupportedMediaType("Content-Type", given, limit)
    return given


async def bounded_stream(request: Request, most_bytes: int) -> AsyncIterator[bytes]:
    """The body's pieces. Raises TooLarge before more than `most_bytes` have been taken in."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most_bytes:
        # Who asks for 100-continue has not begun to send, and need not.
        if request.headers.get("expect", "").lower() != "100-continue":
            await _drain(request)
        raise TooLarge("body", int(declared), f"at most {most_bytes} bytes")
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most_bytes:
            await _drain(request)
            raise TooLarge("body", size, f"at most {most_bytes} bytes")
        yield piece


async def _drain(request: Request) -> None:
    """Takes in and drops what a client is still sending.

    Closing the connection on unread data resets it, and the client never sees the answer.
    """
    dropped = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            more = True
            while more and dropped < _DRAIN_BYTES:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                dropped += len(message.get("body", b""))
                more = message.get("more_body", False)


async def read_body(request: Request, most_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The whole body. Raises TooLarge."""
    pieces = [piece async for piece in bounded_stream(request, most_bytes)]
    return b"".join(pieces)


def announced_bytes(request: Request) -> int:
    """How large the body will be; the most that is allowed when its sender does not say."""
    text = request.headers.get("content-length", "")
    said = int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else MAX_BODY_BYTES
    return min(said, MAX_BODY_BYTES)


def wait_ms_of(request: Request) -> int:
    """`?wait=30s`; 0 when it is not given."""
    text = request.query_params.get("wait")
    if text is None:
        return 0
    return parse_duration_ms(text, field="wait", least_ms=0, most_ms=MAX_WAIT_MS)


def limit_of(request: Request) -> int:
    """`?limit=`, 1 to MAX_PAGE."""
    text = request.query_params.get("limit", str(DEFAULT_PAGE))
    good = text.isascii() and text.isdecimal() and len(text) <= 5
    if not good or not 1 <= int(text) <= MAX_PAGE:
        raise InvalidInput("limit", text, f"must be from 1 to {MAX_PAGE}")
    return int(text)


def flag_of(request: Request, name: str) -> bool:
    """`?follow=1`; 0, false and nothing are off."""
    text = request.query_params.get(name, "0").lower()
    if text not in ("", "0", "1", "true", "false"):
        raise InvalidInput(name, text, "must be 0 or 1")
    return text in ("1", "true")


def labels_of(request: Request) -> dict[str, str]:
    """`?label=k=v`, repeated."""
    labels: dict[str, str] = {}
    for text in request.query_params.getlist("label"):
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidInput("label", text, "must be key=value")
        if labels.setdefault(key, value) != value:
            raise InvalidInput("label", text, "one key cannot have two values")
    if len(labels) > MAX_LABELS:
        raise InvalidInput("label", len(labels), f"at most {MAX_LABELS} labels")
    parse_labels(labels, "label")
    return labels


def known_queries(request: Request, *names: str) -> None:
    """Raises InvalidInput on a parameter that the route does not know: a typo is no filter."""
    for name in request.query_params:
        if name not in names:
            limit = (
                f"must be one of {', '.join(names)}" if names else "there are no parameters here"
            )
            raise InvalidInput(name[:80], request.query_params[name], limit)
