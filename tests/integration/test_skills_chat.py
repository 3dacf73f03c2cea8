"""The skill `chat` against a real server that plays an OpenAI-compatible provider."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.polling import eventually
from tests.scripted_http import (
    DONE,
    USAGE,
    Received,
    Script,
    ScriptedServer,
    answer,
    chunk,
    framed,
    head,
    said,
    scripted,
    send,
    stream,
)

from muster.domain.errors import DeadlineExceeded, Unavailable
from muster.skill import InputRejected, PermanentFailure, Result
from muster.skills.chat_call import MAX_REQUESTS, converse

KEY = "sk-very-secret-0123456789"
HELLO = [{"role": "user", "content": "Hello?"}]


class Provider:
    """The environment of an agent that asks `server`, and one conversation with it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self.key_file = folder / "key"
        self.key_file.write_text(KEY + "\n")
        self.notes: list[str] = []
        self.pieces: list[str] = []

    def is_at(self, server: ScriptedServer, **more: str) -> None:
        for name, value in {
            "MUSTER_CHAT_BASE_URL": f"{server.url}/v1",
            "MUSTER_CHAT_API_KEY_FILE": str(self.key_file),
            "MUSTER_CHAT_MODEL": "tiny",
            "MUSTER_OUTBOUND_ALLOW": "127.0.0.1",
            **more,
        }.items():
            self._monkeypatch.setenv(name, value)

    async def ask(self, **more: Any) -> dict[str, Any]:
        """The result; the pieces that came before are in `pieces`."""
        self.pieces.clear()
        value = {"messages": HELLO, "timeout_s": 30, **more}
        async with aclosing(converse(value, lambda _, note: self.notes.append(note))) as items:
            async for item in items:
                if isinstance(item, Result):
                    result: dict[str, Any] = item.value
                    return result
                self.pieces.append(item)
        raise AssertionError("there was no result")


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Provider:
    return Provider(monkeypatch, tmp_path)


def streaming(*pieces: bytes, **headers: str) -> Script:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await stream(writer, *pieces, **headers)

    return script


COUNTED = chunk(choices=[], usage=USAGE)
GOOD = (said("Hel"), said("lo"), said("", "stop"), COUNTED, DONE)


async def test_a_streamed_answer_with_counts_and_reason(provider: Provider) -> None:
    async with scripted(streaming(*GOOD)) as server:
        provider.is_at(server)
        result = await provider.ask(temperature=0.5, max_tokens=5, stop=["x"])
    assert result == {
        "content": "Hello",
        "finish_reason": "stop",
        "model": "tiny-1",
        "usage": USAGE,
    }
    assert "".join(provider.pieces) == "Hello"
    (request,) = server.received
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert orjson.loads(request.body) == {
        "messages": HELLO,
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_tokens": 5,
        "stop": ["x"],
    }


async def test_pieces_come_while_it_speaks(provider: Provider) -> None:
    heard = asyncio.Event()

    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await head(writer, content_type="text/event-stream", transfer_encoding="chunked")
        await framed(writer, said("first"))
        await heard.wait()
        await framed(writer, said(" second", "stop") + DONE)
        writer.write(b"0\r\n\r\n")

    async with scripted(script) as server:
        provider.is_at(server)
        asking = asyncio.create_task(provider.ask())
        await eventually(lambda: provider.pieces == ["first"])
        heard.set()
        assert (await asking)["content"] == "first second"


async def test_an_answer_that_is_not_streamed(provider: Provider) -> None:
    whole = {
        "model": "m",
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    body = orjson.dumps(whole)
    async with scripted(answer(body=body, content_type="application/json")) as server:
        provider.is_at(server)
        result = await provider.ask()
    assert (result["content"], result["usage"], provider.pieces) == ("yes", USAGE, ["yes"])


# --- what goes wrong at the provider ------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (streaming(said("Hel")), "broke off"),
        (streaming(), "broke off"),
        (streaming(said("Hel"), b"data: {nonsense\n\n"), "not a JSON object"),
        (streaming(b"data: []\n\n"), "not a JSON object"),
        (streaming(chunk(error={"message": "we are overloaded"})), "we are overloaded"),
        (streaming(b"data: " + b"x" * 2_000_000), "more than"),
        (answer(body=b"<html>sign in</html>", content_type="text/html"), "text/html"),
        (answer(body=b"hello"), "no content type"),
        (answer(body=b"{}", content_type="application/json"), "no choices"),
        (answer(500, b'{"error": {"message": "oops"}}'), "500 oops"),
        (answer(503, b"<html>down</html>"), "503 <html>down"),
        (answer(429, b'{"error": "slow down"}'), "429 slow down"),
    ],
)
async def test_failures_that_may_pass(provider: Provider, script: Script, words: str) -> None:
    async with scripted(script) as server:
        provider.is_at(server)
        with pytest.raises(Unavailable) as caught:
            await provider.ask()
    assert words in str(caught.value)
    assert len(server.received) == 1


async def test_a_stream_that_is_cut_in_the_middle(provider: Provider) -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await head(writer, content_type="text/event-stream", transfer_encoding="chunked")
        await framed(writer, said("Hel"))
        writer.write(b"500\r\ndata: {")
        await writer.drain()

    async with scripted(script) as server:
        provider.is_at(server)
        with pytest.raises(Unavailable):
            await provider.ask()
    assert provider.pieces == ["Hel"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 302])
async def test_a_no_is_final_and_never_shows_the_key(provider: Provider, status: int) -> None:
    body = orjson.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    async with scripted(answer(status, body, location="/elsewhere")) as server:
        provider.is_at(server)
        with pytest.raises(PermanentFailure, match=str(status)) as caught:
            await provider.ask()
    assert KEY not in str(caught.value)
    assert "Incorrect API key provided: …" in str(caught.value)
    assert len(server.received) == 1


async def test_a_busy_provider_is_asked_again_when_it_says(provider: Provider) -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        if len(server.received) <= 2:
            status = 429 if len(server.received) == 1 else 503
            await send(writer, status, f"busy, {KEY}".encode(), retry_after="0.05")
        else:
            await stream(writer, *GOOD)

    async with scripted(script) as server:
        provider.is_at(server)
        assert (await provider.ask())["content"] == "Hello"
    assert len(server.received) == 3
    assert ["429 busy" in provider.notes[0], "503 busy" in provider.notes[1]] == [True, True]
    assert KEY not in "".join(provider.notes)


async def test_a_wait_that_is_too_long_is_not_begun(provider: Provider) -> None:
    async with scripted(answer(429, b"", retry_after="31")) as server:
        provider.is_at(server)
        with pytest.raises(Unavailable, match="longer than is left") as caught:
            await provider.ask()
    assert caught.value.retry_after_s == 31
    assert len(server.received) == 1


async def test_one_attempt_asks_so_often_and_no_more(provider: Provider) -> None:
    async with scripted(answer(503, b"", retry_after="0")) as server:
        provider.is_at(server)
        with pytest.raises(Unavailable):
            await provider.ask()
    assert len(server.received) == MAX_REQUESTS


async def test_a_silent_provider_meets_the_deadline(provider: Provider) -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await head(writer, content_type="text/event-stream")
        await asyncio.sleep(600)

    async with scripted(script) as server:
        provider.is_at(server)
        # On a slow machine the time may be up before the request has arrived.
        for seconds in (0.3, 3.0, 30.0):
            with pytest.raises(DeadlineExceeded):
                await provider.ask(timeout_s=seconds)
            if server.received:
                break
        assert server.received
        await eventually(lambda: server.hung_up == len(server.received))


async def test_cancelling_hangs_up(provider: Provider) -> None:
    async def script(_request: Received, writer: asyncio.StreamWriter) -> None:
        await head(writer, content_type="text/event-stream")
        writer.write(said("and"))
        await writer.drain()
        await asyncio.sleep(600)

    async with scripted(script) as server:
        provider.is_at(server)
        asking = asyncio.create_task(provider.ask())
        await eventually(lambda: provider.pieces == ["and"])
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await eventually(lambda: server.hung_up == 1)


# --- what a task may ask for --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"messages": []}, "input.messages"),
        ({"messages": [{}] * 1025}, "input.messages"),
        ({"messages": "hello"}, "input"),
        ({"n": 2}, "input"),
        ({"stream": False}, "input"),
        ({"timeout_s": 0}, "input.timeout_s"),
        ({"temperature": "hot"}, "input"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "input.base_url"),
        ({"base_url": "file:///etc"}, "input.base_url"),
    ],
)
async def test_bad_input_is_rejected(provider: Provider, more: dict[str, Any], field: str) -> None:
    async with scripted(streaming(*GOOD)) as server:
        provider.is_at(server)
        with pytest.raises(InputRejected) as caught:
            await provider.ask(**more)
    assert caught.value.field == field
    assert server.received == []


async def test_another_address_only_where_allowed_and_without_the_key(provider: Provider) -> None:
    async with scripted(answer(500)) as own, scripted(streaming(*GOOD)) as other:
        provider.is_at(own, MUSTER_CHAT_ANY_ADDRESS="1")
        result = await provider.ask(base_url=f"{other.url}/api/", model="theirs")
        assert result["content"] == "Hello"
    assert own.received == []
    (request,) = other.received
    assert request.path == "/api/chat/completions"
    assert "authorization" not in request.headers
    assert orjson.loads(request.body)["model"] == "theirs"


async def test_the_rules_for_addresses_hold_for_the_provider_too(provider: Provider) -> None:
    async with scripted(streaming(*GOOD)) as server:
        provider.is_at(server, MUSTER_OUTBOUND_ALLOW="10.0.0.0/8")
        with pytest.raises(PermanentFailure, match="MUSTER_OUTBOUND_ALLOW"):
            await provider.ask()
    assert server.received == []


async def test_without_a_key_or_model(provider: Provider) -> None:
    async with scripted(streaming(*GOOD)) as server:
        provider.is_at(server, MUSTER_CHAT_API_KEY_FILE="", MUSTER_CHAT_MODEL="")
        with pytest.raises(InputRejected, match="a model is needed"):
            await provider.ask()
        await provider.ask(model="m")
        assert "authorization" not in server.received[0].headers
        provider.is_at(server, MUSTER_CHAT_API_KEY_FILE="/nowhere/key")
        with pytest.raises(Unavailable, match="the chat key"):
            await provider.ask()
    assert len(server.received) == 1
