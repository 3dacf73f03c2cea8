"""A `muster` whose cluster is a table of answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from muster.cli.app import run
from muster.cli.rest import Rest

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]

TASK_ID = "01jd0000000000000000000000"


def answer(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def problem(status: int, detail: str, **more: Any) -> httpx.Response:
    return httpx.Response(
        status,
        json={"type": "urn:muster:problem:x", "title": "T", "status": status, "detail": detail}
        | more,
        headers={"content-type": "application/problem+json"},
    )


def stream(*lines: str) -> httpx.Response:
    return httpx.Response(200, text="".join(f"{line}\n" for line in lines))


def events(*sent: tuple[str, Any]) -> str:
    """An SSE body."""
    return "".join(
        f"id: {number}-0\nevent: {name}\ndata: {json.dumps(data)}\n\n"
        for number, (name, data) in enumerate(sent, 1)
    )


def a_task(state: str = "SUCCEEDED", **more: Any) -> dict[str, Any]:
    """A task as the gateway answers it."""
    return {
        "id": TASK_ID,
        "state": state,
        "attempt": 1,
        "agent": "agent-1",
        "skill": "echo",
        "submitted_at": "2026-01-31T12:00:00.000Z",
        "started_at": "2026-01-31T12:00:01.000Z",
        "ended_at": "2026-01-31T12:00:03.500Z",
        "why": "",
        **more,
    }


@dataclass
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1, "one line of JSON"
        return json.loads(self.out)


@dataclass
class Muster:
    """The command, and the cluster that it finds.

    `answers` maps "METHOD /path" to what is answered in turn; the last answer stays.
    """

    capsys: pytest.CaptureFixture[str]
    environ: Mapping[str, str]
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[httpx.Request] = field(default_factory=list)

    def on(self, route: str, *answers: Answer) -> Muster:
        self.answers[route] = list(answers)
        return self

    def __call__(self, *argv: str) -> Ran:
        code = run(argv, self.environ, httpx.MockTransport(self.handle))
        out, err = self.capsys.readouterr()
        return Ran(code, out, err)

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        route = f"{request.method} {request.url.path}"
        queue = self.answers.get(route)
        assert queue, f"nothing is prepared for {route}"
        given = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(given, Exception):
            raise given
        if callable(given):
            return given(request)
        # A response can be read once only.
        return httpx.Response(given.status_code, headers=given.headers, content=given.content)

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.requests]

    def sent(self, index: int = 0) -> Any:
        return json.loads(self.requests[index].content)


@pytest.fixture
def muster(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Muster:
    """No command waits for real: time passes by its sleeping alone."""
    original = Rest.__init__

    def hasty(self: Rest, *args: Any, **kwargs: Any) -> None:
        slept: list[float] = []
        original(self, *args, **kwargs, sleep=slept.append, clock=lambda: sum(slept))

    monkeypatch.setattr(Rest, "__init__", hasty)
    monkeypatch.setenv("COLUMNS", "80")
    return Muster(capsys, {"MUSTER_URL": "http://127.0.0.1:1", "MUSTER_API_KEY": "mst_key_secret"})
