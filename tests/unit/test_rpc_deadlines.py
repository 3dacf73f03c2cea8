"""Every RPC in the code has a deadline, or is an endless stream of a connection that is probed."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

from muster.etcd import wire
from muster.rpc.channels import CHANNEL_OPTIONS, ServiceChannel
from muster.rpc.server import SERVER_OPTIONS

_ROOT = Path(__file__).resolve().parents[2]
_GENERATED = _ROOT / "src" / "muster" / "api"
# Followed for as long as there is something to follow; `ReadLog` when it follows.
ENDLESS = {"Heartbeat", "ReadLog", "Report", "Session", "Tail", "WatchAgents", "WatchFailures"}
# Where stubs meet connections; what they do is looked at below.
DIALLERS = {
    "src/muster/etcd/wire.py",
    "src/muster/rpc/call_stream.py",
    "src/muster/rpc/channels.py",
}
# The longest time in which a connection that carries nothing must be noticed.
PROBED_WITHIN_MS = 15_000


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Each call in the code that is not generated, with its file."""
    for folder in ("src", "services"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            if path.is_relative_to(_GENERATED):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield str(path.relative_to(_ROOT)), node


def method_of(call: ast.Call) -> str:
    """The RPC that `channel.stream(Stub, "Method", ...)` names; empty for other streams."""
    if len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
        return str(call.args[1].value)
    return ""


def test_a_unary_call_cannot_be_made_without_a_deadline() -> None:
    timeout = inspect.signature(ServiceChannel.call).parameters["timeout_s"]
    assert timeout.default is inspect.Parameter.empty
    assert timeout.kind is inspect.Parameter.KEYWORD_ONLY


def test_streams_have_a_deadline_or_are_endless_by_nature() -> None:
    seen = set()
    for path, call in calls():
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "stream":
            continue
        method = method_of(call)
        if not method or any(word.arg == "timeout_s" for word in call.keywords):
            continue
        assert method in ENDLESS, f"{path}:{call.lineno}: {method} has no deadline"
        seen.add(method)
    assert seen == ENDLESS


def test_nobody_dials_past_the_channels() -> None:
    for path, call in calls():
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        dials = name.endswith("Stub") or name in ("insecure_channel", "secure_channel")
        assert not dials or path in DIALLERS, f"{path}:{call.lineno}: {name}"


def test_every_call_of_etcd_has_a_deadline() -> None:
    found = 0
    for path, call in calls():
        if path != "src/muster/etcd/client.py" or not isinstance(call.func, ast.Subscript):
            continue
        found += 1
        assert any(word.arg == "timeout" for word in call.keywords), f"{path}:{call.lineno}"
    assert found == 1


def test_connections_that_carry_nothing_are_noticed() -> None:
    for options in (CHANNEL_OPTIONS, SERVER_OPTIONS, wire.CHANNEL_OPTIONS):
        known = dict(options)
        idle = known["grpc.keepalive_time_ms"] + known["grpc.keepalive_timeout_ms"]
        assert 0 < idle <= PROBED_WITHIN_MS
