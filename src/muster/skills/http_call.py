"""What `http` does when it is called: from the task's input to its result."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
import orjson

from muster.domain.errors import InvalidInput, TooLarge
from muster.outbound.addresses import ALLOW_VARIABLE, AllowList
from muster.outbound.exchange import Answer, Limits, Outbound
from muster.outbound.requests import (
    MAX_BODY_BYTES,
    MAX_REDIRECTS,
    OutboundRefused,
    OutboundRequest,
    parse_headers,
    parse_method,
    parse_url,
)
from muster.skill import InputRejected, PermanentFailure
from muster.skills.http import (
    DEFAULT_MAX_BYTES,
    DEFAULT_TIMEOUT_S,
    MAX_INLINE_BYTES,
    MAX_MAX_BYTES,
    MAX_TIMEOUT_S,
)

T = TypeVar("T")
# Types that are text although they are not called text/….
_TEXT: Final = re.compile(
    r"text/|application/(.*\+)?(json|xml|yaml|javascript|x-ndjson|x-www-form-urlencoded)\b"
)
_CHARSET: Final = re.compile(r"charset=\"?([-\w]{1,40})", re.IGNORECASE)


class HttpInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input of `http`."""

    url: str
    method: str = "GET"
    headers: dict[str, str] = {}
    body: str | msgspec.UnsetType = msgspec.UNSET
    body_base64: str | msgspec.UnsetType = msgspec.UNSET
    json: Any = msgspec.UNSET
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_bytes: int = DEFAULT_MAX_BYTES
    redirects: int = MAX_REDIRECTS


def as_input(value: Any, kind: type[T]) -> T:
    """The task's input as a struct; raises InvalidInput naming the place."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # Not quoted back: headers may hold secrets.
        raise InvalidInput("input", str(error), "see the skill's input schema") from None


def bounded(field: str, value: float, least: float, most: float) -> None:
    """Raises InvalidInput; NaN is out of all bounds."""
    if not least <= value <= most:
        raise InvalidInput(field, value, f"from {least:g} to {most:g}")


def parse_request(value: Any) -> tuple[OutboundRequest, Limits]:
    """The request that the input describes, checked in full; raises InvalidInput."""
    found = as_input(value, HttpInput)
    # A wait of no length could only fail.
    bounded("input.timeout_s", found.timeout_s, 0.001, MAX_TIMEOUT_S)
    bounded("input.max_bytes", found.max_bytes, 0, MAX_MAX_BYTES)
    bounded("input.redirects", found.redirects, 0, MAX_REDIRECTS)
    headers = parse_headers(found.headers, "input.headers")
    body, kind = _body(found)
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge("input.body", len(body), f"at most {MAX_BODY_BYTES} bytes")
    if kind and not any(name.lower() == "content-type" for name, _ in headers):
        headers += (("Content-Type", kind),)
    request = OutboundRequest(
        parse_method(found.method, "input.method"),
        parse_url(found.url, "input.url"),
        headers,
        body,
    )
    return request, Limits(found.timeout_s, found.max_bytes, found.redirects)


def _body(found: HttpInput) -> tuple[bytes, str]:
    given = [
        name
        for name in ("body", "body_base64", "json")
        if getattr(found, name) is not msgspec.UNSET
    ]
    if len(given) > 1:
        raise InvalidInput("input", " and ".join(given), "one of body, body_base64 and json")
    if isinstance(found.body, str):
        return found.body.encode(), "text/plain; charset=utf-8"
    if isinstance(found.body_base64, str):
        try:
            return base64.b64decode(found.body_base64, validate=True), "application/octet-stream"
        except binascii.Error as error:
            raise InvalidInput("input.body_base64", found.body_base64, str(error)) from None
    if found.json is not msgspec.UNSET:
        return orjson.dumps(found.json), "application/json"
    return b"", ""


def outbound() -> Outbound:
    """Under the rules of this agent's environment."""
    return Outbound(AllowList.parse(os.environ.get(ALLOW_VARIABLE, "")))


async def fetch(value: Any, put_blob: Callable[[bytes], Awaitable[str]]) -> dict[str, Any]:
    """The task's result. What would fail again fails for good; no answer at all may be retried."""
    try:
        request, limits = parse_request(value)
        async with outbound().open(request, limits) as answer:
            body = b"" if request.method == "HEAD" else await answer.read()
    except TooLarge as error:
        raise PermanentFailure(str(error)) from None
    except InvalidInput as error:
        raise InputRejected(error.field, error.value, error.limit) from None
    except OutboundRefused as error:
        raise PermanentFailure(str(error)) from None
    return {
        "status": answer.status,
        "url": answer.target.url,
        "headers": _joined(answer.headers),
        "size": len(body),
        **await _shown(answer, body, put_blob),
    }


def _joined(headers: list[tuple[str, str]]) -> dict[str, str]:
    """One value for each name; repeated ones are joined as RFC 9110, section 5.3, has it."""
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


async def _shown(
    answer: Answer, body: bytes, put_blob: Callable[[bytes], Awaitable[str]]
) -> dict[str, str]:
    if len(body) > MAX_INLINE_BYTES:
        return {"blob": await put_blob(body)}
    text = _text(answer, body)
    return {"base64": base64.b64encode(body).decode()} if text is None else {"text": text}


def _text(answer: Answer, body: bytes) -> str | None:
    kind = answer.header("content-type")
    if body and not _TEXT.match(kind.lower()):
        return None
    if answer.header("content-encoding") not in ("", "identity"):
        return None
    named = _CHARSET.search(kind)
    try:
        return body.decode(named[1] if named else "utf-8")
    except (LookupError, UnicodeError):
        return None
