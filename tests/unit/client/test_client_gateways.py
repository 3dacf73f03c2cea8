"""Several gateways: clients and the CLI turn to the one that answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.client.fake_steps import LOST, World, reply

from muster import AsyncClient, Client
from muster.cli.failure import Failure
from muster.cli.rest import Rest
from muster.client import calls
from muster.client.errors import NoCluster
from muster.client.exchange import Request, exchange
from muster.client.gateways import Gateways
from muster.client.target import find_target
from muster.local.profile import Profile, write_profile

BOTH = "http://one:1,http://two:2"


class Answers:
    """What each host does with requests: an answer, or an error. Notes who was asked."""

    def __init__(self, **by_host: Callable[[httpx.Request], httpx.Response]) -> None:
        self._by_host = by_host
        self.asked: list[str] = []
        self.keys: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        assert request.headers["host"] == f"{host}:{request.url.port}"
        self.asked.append(host)
        self.keys.append(request.headers.get("idempotency-key", ""))
        return self._by_host[host](request)


def refuses(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused", request=request)


def hangs_up(request: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("hung up", request=request)


def is_silent(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("silent", request=request)


def goes_down(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(503, json={"title": "going down", "status": 503})


def accepts(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(202, json={"id": "t", "ids": ["t"], "state": "PENDING", "created": True})


@pytest.mark.parametrize("bad", [refuses, hangs_up, is_silent, goes_down])
def test_a_client_turns_to_the_gateway_that_answers_and_stays_there(bad: Any) -> None:
    answers = Answers(one=bad, two=accepts)
    with Client(BOTH, "k", transport=httpx.MockTransport(answers)) as client:
        assert client.submit("echo") == "t"
        assert client.submit("echo") == "t"
    assert answers.asked == ["one", "two", "two"]
    # The repetition is the same request.
    assert answers.keys[0] == answers.keys[1] != answers.keys[2]


async def test_an_async_client_turns_too() -> None:
    answers = Answers(one=hangs_up, two=accepts)
    transport = httpx.MockTransport(answers)
    async with AsyncClient(BOTH, "k", transport=transport) as client:
        assert await client.submit("echo") == "t"
    assert answers.asked == ["one", "two"]


def test_a_stream_is_taken_up_at_the_other_gateway_after_the_last_event() -> None:
    class Cut(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            yield b'id: 7\nevent: task.changed\ndata: {"id":"7","kind":"task.changed"}\n\n'
            raise httpx.ReadError("gone")

    seen: list[str] = []

    def begins(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Cut())

    def goes_on(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["last-event-id"])
        text = b'id: 8\nevent: task.changed\ndata: {"id":"8","kind":"task.changed"}\n\n'
        return httpx.Response(200, content=text)

    answers = Answers(one=begins, two=goes_on)
    with Client(BOTH, "k", transport=httpx.MockTransport(answers)) as client:
        events = client.events()
        assert [next(events).id, next(events).id] == ["7", "8"]
    assert (answers.asked, seen) == (["one", "two"], ["7"])


def rest(answers: Answers, urls: tuple[str, ...], slept: list[float]) -> Rest:
    transport = httpx.MockTransport(answers)
    return Rest(urls, "k", transport=transport, sleep=slept.append, clock=lambda: sum(slept))


@pytest.mark.parametrize("bad", [refuses, hangs_up, is_silent, goes_down])
def test_a_command_turns_to_the_gateway_that_answers(bad: Any) -> None:
    answers = Answers(one=bad, two=accepts)
    asked = rest(answers, ("http://one:1", "http://two:2"), [])
    assert asked.post("/v1/tasks", {"skill": "echo"}, key="x")["id"] == "t"
    assert (asked.url, answers.asked) == ("http://two:2", ["one", "two"])
    assert asked.long_poll == "5s"


def test_a_command_gives_up_when_no_gateway_answers() -> None:
    answers = Answers(one=refuses, two=hangs_up)
    with pytest.raises(Failure, match="cannot be reached"):
        rest(answers, ("http://one:1", "http://two:2"), []).get("/v1/cluster")
    assert {"one", "two"} == set(answers.asked)


def test_what_must_not_be_repeated_is_not_sent_to_another_gateway() -> None:
    answers = Answers(one=hangs_up, two=accepts)
    with pytest.raises(Failure, match="hung up"):
        rest(answers, ("http://one:1", "http://two:2"), []).put("/v1/policy", {}, if_match="e")
    assert answers.asked == ["one"]


def test_where_there_is_another_gateway_silence_is_borne_for_a_while_only() -> None:
    world = World([LOST, LOST, reply({})])
    settings = world.settings()
    deadline = settings.deadline("x", 300.0)
    world.run(exchange(settings, Request("GET", "/x"), deadline))
    assert [send.quiet_s for send in world.sent] == [60.0, 60.0, 60.0]
    several = World([LOST, LOST, LOST, LOST, LOST, reply({})])
    settings = several.settings(gateways=2)
    deadline = settings.deadline("x", 300.0)
    several.run(exchange(settings, Request("GET", "/x"), deadline, due_s=2.0))
    # All of them may be slow: each try is given more.
    assert [send.quiet_s for send in several.sent] == [7.0, 12.0, 22.0, 42.0, 60.0, 60.0]
    once = World([reply({})])
    settings = once.settings(gateways=2)
    once.run(exchange(settings, Request("PUT", "/x", repeatable=False), deadline))
    assert once.sent[0].quiet_s == 60.0


def test_a_long_poll_is_short_where_there_is_another_gateway() -> None:
    for gateways, wait in ((1, "30000ms"), (2, "5000ms")):
        world = World([reply({"id": "t", "state": "SUCCEEDED", "result": 1, "attempt": 1})])
        world.run(calls.result(world.settings(gateways=gateways), "t", None, None))
        assert world.sent[0].request.params == {"wait": wait}


def test_the_target_may_be_several_gateways(tmp_path: Path) -> None:
    environ = {"MUSTER_PROFILE": str(tmp_path / "profile.json")}
    profile = Profile("http://one:1", "pk", "/state", ("http://two:2",))
    write_profile(profile, environ)
    assert find_target(None, None, environ) == profile
    own = environ | {"MUSTER_URL": "http://x:1, http://y:2,", "MUSTER_API_KEY": "k"}
    assert find_target(None, None, own).urls == ("http://x:1", "http://y:2")
    # Any of the profile's own may be chosen, and gets its key.
    assert find_target("http://two:2/", None, environ).urls == ("http://two:2/",)
    with pytest.raises(NoCluster, match="for another URL"):
        find_target("http://two:2,http://evil:1", None, environ)
    with pytest.raises(NoCluster, match="URL"):
        find_target("http://one:1,x", "k", environ)


def test_an_older_profile_has_one_gateway(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"url": "http://one:1", "api_key": "k", "state_dir": ""}))
    found = find_target(None, None, {"MUSTER_PROFILE": str(path)})
    assert found.urls == ("http://one:1",)


def test_one_failure_seen_by_many_turns_once() -> None:
    gateways = Gateways(["http://one:1/", "http://two:2"])
    first = gateways.url
    gateways.turn_from(first)
    gateways.turn_from(first)
    assert gateways.url == "http://two:2"
