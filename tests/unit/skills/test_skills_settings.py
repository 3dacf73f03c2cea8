"""How the environment of an agent configures `http` and `chat`, and what tasks may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muster.agent.catalog import load_skills
from muster.agent.config import AgentConfig
from muster.domain.errors import ConfigurationError, InvalidInput, Unavailable
from muster.skills.chat_settings import ChatSettings
from muster.skills.http_call import parse_request

AGENT = {"MUSTER_REGISTRY": "127.0.0.1:1", "MUSTER_JOIN_SECRET": "x" * 16}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("sk-1\n")
    return path


def test_chat_is_offered_where_there_is_somebody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSTER_CHAT_BASE_URL", raising=False)
    assert "chat" not in load_skills([], builtin=True)
    monkeypatch.setenv("MUSTER_CHAT_BASE_URL", "https://api.test/v1")
    assert {"chat", "http"} <= load_skills([], builtin=True).keys()
    assert "chat" not in load_skills(["examples.quickstart.skills"], builtin=False)


def test_the_key_comes_from_the_file_each_time(key_file: Path) -> None:
    settings = ChatSettings.from_env({"MUSTER_CHAT_API_KEY_FILE": str(key_file)})
    assert settings.key() == "sk-1"
    assert "sk-1" not in repr(settings)
    key_file.write_text("sk-2")
    assert settings.key() == "sk-2"
    key_file.unlink()
    with pytest.raises(Unavailable, match="No such file"):
        settings.key()


@pytest.mark.parametrize("content", ["", " \n", "two\nlines", "two words", "k" * 4097, "ü"])
def test_a_key_that_is_none_is_refused(key_file: Path, content: str) -> None:
    key_file.write_text(content)
    with pytest.raises(Unavailable, match="the chat key"):
        ChatSettings.from_env({"MUSTER_CHAT_API_KEY_FILE": str(key_file)}).key()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MUSTER_CHAT_BASE_URL", "api.test"),
        ("MUSTER_CHAT_BASE_URL", "https://user:pw@api.test/v1"),
        ("MUSTER_CHAT_BASE_URL", "https://api.test/v1?key=1"),
        ("MUSTER_CHAT_ANY_ADDRESS", "yes"),
        ("MUSTER_CHAT_API_KEY", "sk-secret"),
        ("MUSTER_CHAT_API_KEY_FILE", "/nowhere/key"),
        ("MUSTER_OUTBOUND_ALLOW", "10.0.0.0/99"),
    ],
)
def test_an_agent_does_not_start_with_it(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AgentConfig.from_env({**AGENT, name: value})
    assert caught.value.key == name
    assert "sk-secret" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_commands_do_not_see_what_skills_are_configured_with() -> None:
    environ = {
        **AGENT,
        "MUSTER_CHAT_BASE_URL": "https://api.test/v1",
        "MUSTER_OUTBOUND_ALLOW": "10.0.0.0/8",
        "MUSTER_CHAT_OTHER": "x",
    }
    config = AgentConfig.from_env(environ)
    assert not [n for n in config.task_environ(environ) if n.startswith("MUSTER_")]
    seen = {n: v for n, v in config.skill_environ(environ).items() if n.startswith("MUSTER_")}
    assert seen == {
        "MUSTER_CHAT_BASE_URL": "https://api.test/v1",
        "MUSTER_OUTBOUND_ALLOW": "10.0.0.0/8",
    }


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "input"),
        ([], "input"),
        ({}, "input"),
        ({"url": 1}, "input"),
        ({"url": "http://a.test", "colour": "red"}, "input"),
        ({"url": "gopher://a.test"}, "input.url"),
        ({"url": "http://a.test", "method": "TRACE"}, "input.method"),
        ({"url": "http://a.test", "headers": {"X": "a\r\nY: b"}}, "input.headers.X"),
        ({"url": "http://a.test", "headers": {"X": 1}}, "input"),
        ({"url": "http://a.test", "timeout_s": 0}, "input.timeout_s"),
        ({"url": "http://a.test", "timeout_s": 3601}, "input.timeout_s"),
        ({"url": "http://a.test", "timeout_s": float("nan")}, "input.timeout_s"),
        ({"url": "http://a.test", "max_bytes": -1}, "input.max_bytes"),
        ({"url": "http://a.test", "max_bytes": 64 * 1024 * 1024 + 1}, "input.max_bytes"),
        ({"url": "http://a.test", "redirects": 4}, "input.redirects"),
        ({"url": "http://a.test", "body": "a", "json": 1}, "input"),
        ({"url": "http://a.test", "body_base64": "a"}, "input.body_base64"),
    ],
)
def test_bad_requests_are_named(value: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_request(value)
    assert caught.value.field == field


def test_bodies_bring_their_type_unless_it_is_given() -> None:
    for body, content, kind in (
        ({"body": "ü"}, "ü".encode(), "text/plain; charset=utf-8"),
        ({"body_base64": "AAE="}, b"\x00\x01", "application/octet-stream"),
        ({"json": None}, b"null", "application/json"),
    ):
        request, _ = parse_request({"url": "http://a.test", "method": "PUT", **body})
        assert (request.body, request.headers) == (content, (("Content-Type", kind),))
    given, _ = parse_request(
        {"url": "http://a.test", "headers": {"content-type": "a/b"}, "json": {}}
    )
    assert given.headers == (("content-type", "a/b"),)
