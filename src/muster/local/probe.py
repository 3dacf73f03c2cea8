"""Asks the processes of an embedded cluster over HTTP whether they are ready.

By hand over asyncio's streams: the long-lived parent carries no HTTP library.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from muster.local.ports import LOOPBACK

# Loopback answers in a millisecond; two busy cores with a dozen starting processes take longer.
_ANSWER_S = 2.0
# A thousand agents' descriptions; more is not read.
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_MAX_WHY_CHARS = 300


async def get(port: int, path: str, key: str = "") -> tuple[int, bytes]:
    """Status and body of GET `path`; status 0 when nobody answers in time."""
    credential = f"Authorization: Bearer {key}\r\n" if key else ""
    request = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\n{credential}Connection: close\r\n\r\n"
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(request.encode())
                answer = await _read_all(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0, b""
    return parse_answer(answer)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    chunks: list[bytes] = []
    left = _MAX_ANSWER_BYTES
    while left > 0 and (chunk := await reader.read(min(left, 65536))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def parse_answer(answer: bytes) -> tuple[int, bytes]:
    """Status and body of a whole HTTP/1.1 answer; (0, b"") when it is none."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    words = lines[0].split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return 0, b""
    if any(line.lower().replace(b" ", b"") == b"transfer-encoding:chunked" for line in lines):
        body = _dechunk(body)
    return int(words[1]), body


def _dechunk(body: bytes) -> bytes:
    parts: list[bytes] = []
    while True:
        size_text, _, rest = body.partition(b"\r\n")
        try:
            size = int(size_text.split(b";")[0], 16)
        except ValueError:
            break
        if size == 0:
            break
        parts.append(rest[:size])
        body = rest[size + 2 :]
    return b"".join(parts)


async def why_not_ready(port: int) -> str | None:
    """None when the process behind `port` is ready, else the reason in its words."""
    status, body = await get(port, "/readyz")
    if status == 200:
        return None
    if status == 0:
        return "it does not answer"
    return reason_in(body) or f"it answers {status}"


def reason_in(body: bytes) -> str:
    """The sentence in the body of a refusal: a problem document or plain text."""
    text = body.decode(errors="replace").strip()
    if text.startswith("{"):
        try:
            problem = json.loads(text)
        except ValueError:
            return text[:_MAX_WHY_CHARS]
        text = str(problem.get("detail") or problem.get("title") or text)
    return text[:_MAX_WHY_CHARS]


async def agents_not_ready(port: int, key: str, wanted: Iterable[str]) -> dict[str, str]:
    """Why each of `wanted` is not ready, by agent; empty when all are."""
    status, body = await get(port, "/v1/agents?limit=1000", key)
    if status != 200:
        why = "the gateway does not answer" if status == 0 else reason_in(body)
        return dict.fromkeys(wanted, why or f"the gateway answers {status}")
    try:
        states = {str(item["id"]): str(item["state"]) for item in json.loads(body)["items"]}
    except (ValueError, KeyError, TypeError):
        return dict.fromkeys(wanted, "the gateway's list of agents cannot be read")
    return {
        ident: f"it is {states[ident]}" if ident in states else "it has not registered"
        for ident in wanted
        if states.get(ident) != "READY"
    }
