"""From the bytes of a streamed chat completion to its text, token counts and end. Pure.

Sources: WHATWG HTML, "Server-sent events"; OpenAI API reference, "Chat completion chunks".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

# One event is a few words; a line without an end must not fill the memory.
MAX_LINE_BYTES: Final = 1024 * 1024
MAX_TOOL_CALLS: Final = 128
DONE: Final = "[DONE]"
_END: Final = re.compile(rb"\r\n|\n|\r")
_ERROR_CHARS: Final = 500


class MalformedStream(Exception):
    """The provider sent what is no stream of chat completion chunks."""


class ProviderError(Exception):
    """The provider said in the middle of its answer that it failed."""


class EventData:
    """Cuts a stream of bytes into the data of its events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[str]:
        """The data of each event that is now complete; raises MalformedStream."""
        found: list[str] = []
        content = self._rest + chunk
        start = 0
        for end in _END.finditer(content):
            if end[0] == b"\r" and end.end() == len(content):
                # Its \n may still come, and must not count as a second line's end.
                break
            self._line(content[start : end.start()], found)
            start = end.end()
        self._rest = content[start:]
        if len(self._rest) + self._size > MAX_LINE_BYTES:
            raise MalformedStream(f"an event has more than {MAX_LINE_BYTES} bytes")
        return found

    def _line(self, line: bytes, found: list[str]) -> None:
        if not line:
            if self._data:
                try:
                    found.append(b"\n".join(self._data).decode())
                except UnicodeDecodeError:
                    raise MalformedStream("an event is not UTF-8") from None
            self._data, self._size = [], 0
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)


class Completion:
    """What has been said so far."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.done = False
        self._parts: list[str] = []
        self._tools: dict[int, dict[str, Any]] = {}

    @property
    def complete(self) -> bool:
        """Whether it ended, rather than stopped."""
        return self.done or self.finish_reason is not None

    def take(self, data: str) -> str:
        """The new text, maybe none; raises MalformedStream, ProviderError."""
        if data == DONE:
            self.done = True
            return ""
        return self._choice(_object(data), "delta")

    def take_whole(self, content: bytes) -> str:
        """An answer that was not streamed; raises as `take`."""
        text = self._choice(_object(content), "message")
        if not self.complete:
            raise MalformedStream("the answer holds no choice with a finish_reason")
        return text

    def result(self) -> dict[str, Any]:
        """The task's result."""
        result: dict[str, Any] = {
            "content": "".join(self._parts),
            "finish_reason": self.finish_reason,
            "model": self.model,
            "usage": self.usage,
        }
        if self._tools:
            result["tool_calls"] = [call for _, call in sorted(self._tools.items())]
        return result

    def _choice(self, chunk: dict[str, Any], part: str) -> str:
        if chunk.get("error"):
            raise ProviderError(error_text(chunk))
        self.model = _text(chunk, "model") or self.model
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise MalformedStream(f"there are no choices in {str(chunk)[:_ERROR_CHARS]}")
        if not choices:
            return ""
        choice = choices[0]
        if not isinstance(choice, dict) or not isinstance(choice.get(part) or {}, dict):
            raise MalformedStream(f"a choice without a {part}: {str(choice)[:_ERROR_CHARS]}")
        message = choice.get(part) or {}
        text = _text(message, "content")
        if text:
            self._parts.append(text)
        for position, call in enumerate(message.get("tool_calls") or ()):
            self._tool_call(call, position)
        self.finish_reason = _text(choice, "finish_reason") or self.finish_reason
        return text

    def _tool_call(self, piece: Any, position: int) -> None:
        """Name and arguments come in pieces that belong together by index."""
        if not isinstance(piece, dict) or not isinstance(piece.get("function") or {}, dict):
            raise MalformedStream(f"a tool call is {str(piece)[:_ERROR_CHARS]}")
        index = piece.get("index", position)
        if not isinstance(index, int) or not 0 <= index < MAX_TOOL_CALLS:
            raise MalformedStream(f"a tool call has index {index!r}")
        new = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        call = self._tools.setdefault(index, new)
        call["id"] = _text(piece, "id") or call["id"]
        function = piece.get("function") or {}
        for name in ("name", "arguments"):
            call["function"][name] += _text(function, name)


def _object(data: str | bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        shown = data if isinstance(data, str) else data.decode("utf-8", "replace")
        raise MalformedStream(f"not a JSON object: {shown[:_ERROR_CHARS]!r}")
    return found


def _text(holder: Mapping[str, Any], name: str) -> str:
    value = holder.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedStream(f"{name} is no text: {str(value)[:_ERROR_CHARS]}")
    return value


def error_text(body: Any) -> str:
    """What a provider's error says: its message, or the start of what it sent."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])[:_ERROR_CHARS]
    shown = error if error is not None else body
    return str(shown)[:_ERROR_CHARS]


def retryable(status: int) -> bool:
    """Whether the same request may succeed later: the provider is busy or broken."""
    return status in (408, 425, 429) or status >= 500


def retry_after_s(header: str, now_unix_s: float) -> float | None:
    """Seconds to wait, from seconds or an HTTP date; None when the header says neither."""
    text = header.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", text):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, at.timestamp() - now_unix_s)
