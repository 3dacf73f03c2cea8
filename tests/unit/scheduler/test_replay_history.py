"""`muster replay --history`: what a cluster has run, asked of it page by page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from muster_scheduler.replay import command

PAGES = 3
PER_PAGE = 20


def row(number: int) -> dict[str, Any]:
    began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
    took = timedelta(seconds=4 if number % 2 else 1)
    return {
        "id": f"{number:026d}",
        "state": "SUCCEEDED",
        "skill": "echo",
        "agent": ("a", "b")[number % 2],
        "submitted_at": began.isoformat(),
        "started_at": began.isoformat(),
        "ended_at": (began + took).isoformat(),
        "resources": {"cpu": "100m"},
    }


class Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        known = self.headers["Authorization"] == "Bearer key"
        page = int(parse_qs(asked.query).get("cursor", ["0"])[0])
        numbers = range((PAGES - page) * PER_PAGE - 1, (PAGES - page - 1) * PER_PAGE - 1, -1)
        body = json.dumps(
            {
                "items": [row(number) for number in numbers],
                "next": str(page + 1) if page + 1 < PAGES else None,
            }
            if known
            else {"title": "forbidden", "detail": "no such key", "status": 401}
        ).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as it is called there
        pass


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("MUSTER_URL", url)
    monkeypatch.setenv("MUSTER_API_KEY", "key")
    yield url
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("gateway")
def test_all_pages_are_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--history", "--strategy", "greedy", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["tasks"] == PAGES * PER_PAGE
    assert command.main(["--history", "--strategy", "greedy"]) == 0
    assert capsys.readouterr().out.startswith(f"{PAGES * PER_PAGE} tasks in 0.02 h on 2 agents")


@pytest.mark.usefixtures("gateway")
def test_a_refusal_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUSTER_API_KEY", "another")
    assert command.main(["--history"]) == 1
    assert "no such key" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--history", "trace.csv"]])
def test_a_file_or_the_history(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(argv) == 2
    assert "--history" in capsys.readouterr().err
