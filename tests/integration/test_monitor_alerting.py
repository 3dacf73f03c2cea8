"""The alert desk, its storage and its receivers: real gRPC and HTTP, storage in memory."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.gateway_fakes import SECRET, FakeStorage
from tests.polling import eventually

from muster.api.v1 import agent_pb2, storage_pb2, storage_pb2_grpc
from muster.domain.errors import ConfigurationError, Unavailable
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_ms, wall_ms
from muster.rpc.server import RpcServer
from muster_monitor.alerting import desk as desk_module
from muster_monitor.alerting import keeping, sending
from muster_monitor.alerting import office as office_module
from muster_monitor.alerting.alerts import AlertState
from muster_monitor.alerting.keeping import MONITOR_TENANT
from muster_monitor.alerting.matching import parse_matcher
from muster_monitor.alerting.office import AlertOffice
from muster_monitor.alerting.silences import Silence
from muster_monitor.alerting.silencing import Silencing
from muster_monitor.findings import Finding, Severity
from muster_monitor.state import MonitorState

HOT = Finding("cpu_high", {"agent": "a"}, Severity.CRITICAL, True, "hot", 1_700_000_000_000)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and pauses in hundredths of what they are."""
    monkeypatch.setattr(desk_module, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(desk_module, "RENEW_MS", 20)
    monkeypatch.setattr(keeping, "_CALL_TIMEOUT_S", 1.0)
    monkeypatch.setattr(office_module, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(sending, "_LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(sending, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(sending, "LAST_PAUSE_S", 0.1)
    monkeypatch.setattr(sending, "MAX_RETRIES_PER_HOUR", 100_000)


class Hook:
    """A webhook: keeps what it is sent, answers as it is told."""

    def __init__(self) -> None:
        self.status, self.location, self.hangs = 200, "", False
        self.bodies: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.tries = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {
                name.lower(): text.strip()
                for name, _, text in (line.partition(":") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers["content-length"]))
            self.tries += 1
            if self.hangs:
                await asyncio.sleep(3600)
            if 200 <= self.status < 300:
                self.headers.append(headers)
                self.raw.append(body)
                self.bodies.append(json.loads(body))
            extra = f"Location: {self.location}\r\n" if self.location else ""
            writer.write(f"HTTP/1.1 {self.status} X\r\n{extra}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()
        finally:
            writer.close()

    def told(self) -> list[tuple[str, list[str]]]:
        """Status and agents of each message."""
        return [
            (body["status"], sorted(a["labels"]["agent"] for a in body["alerts"]))
            for body in self.bodies
        ]


class World:
    """Storage in memory, a folder, and monitors' offices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = FakeStorage()  # type: ignore[abstract]
        self.document = folder / "alerting.yaml"
        self.hook, self.other = Hook(), Hook()
        self.port = 0

    def write(self, *receivers: dict[str, Any], **fields: Any) -> None:
        usual = {"group_wait": 0, "group_interval": "1s", "allow": ["127.0.0.1"], **fields}
        text = json.dumps({**usual, "receivers": list(receivers)})
        # In one step: a half-written document would be read as a mistake.
        fresh = self.folder / "fresh"
        fresh.write_text(text)
        fresh.rename(self.document)

    @asynccontextmanager
    async def monitor(self, name: str = "m1", *, kill: bool = False) -> AsyncIterator[AlertOffice]:
        """With `kill` it leaves as a killed process does, without handing over."""
        address = (f"127.0.0.1:{self.port}",)
        channels = [ServiceChannel(address, secret=SECRET, what="storage") for _ in range(2)]
        path = str(self.document) if self.document.exists() else ""
        values, events = channels
        office = AlertOffice(MonitorState(), values, events, path, name, boot_ms, wall_ms)
        task = asyncio.create_task(office.run())
        try:
            yield office
        finally:
            if kill:
                for channel in channels:
                    await channel.close()
            task.cancel()
            await asyncio.wait([task])
            for channel in channels:
                await channel.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    server = RpcServer("127.0.0.1:0", secret=SECRET, service="storage")
    server.add(storage_pb2_grpc.add_StorageServiceServicer_to_server, world.storage)
    server.add(storage_pb2_grpc.add_DataServiceServicer_to_server, world.storage)
    world.port = await server.start()
    await world.hook.start()
    await world.other.start()
    yield world
    await server.stop()
    await world.hook.stop()
    await world.other.stop()


def states(office: AlertOffice) -> dict[str, AlertState]:
    return {a.rule: a.state for a in office.desk.book.alerts.values()}


def post(office: AlertOffice, agent: str = "a", active: bool = True) -> None:
    finding = Finding(HOT.rule, {"agent": agent}, HOT.severity, active, "hot", HOT.at_ms)
    office._state.findings.post([finding])


def webhook(world: World, name: str = "pager", **fields: Any) -> dict[str, Any]:
    return {"name": name, "webhook": {"url": world.hook.url, **fields}}


async def test_a_webhook_is_told_of_beginning_and_end_and_can_tell_who_speaks(
    world: World,
) -> None:
    secret = world.folder / "secret"
    secret.write_text("hush\n")
    world.write(webhook(world, secret_file=str(secret), headers={"X-Team": "storage"}))
    async with world.monitor() as office:
        post(office)
        await eventually(lambda: world.hook.told() == [("firing", ["a"])])
        post(office, active=False)
        await eventually(lambda: len(world.hook.told()) == 2)
    assert world.hook.told()[1] == ("resolved", ["a"])
    for headers, raw in zip(world.hook.headers, world.hook.raw, strict=True):
        parts = dict(part.split("=") for part in headers["x-muster-signature"].split(","))
        wanted = hmac.new(b"hush", parts["t"].encode() + b"." + raw, hashlib.sha256).hexdigest()
        assert parts["v1"] == wanted
        assert headers["x-team"] == "storage"
    assert len({headers["x-muster-notification"] for headers in world.hook.headers}) == 2


@pytest.mark.parametrize("kill", [False, True])
async def test_a_monitor_that_is_started_again_neither_forgets_nor_repeats(
    world: World, kill: bool
) -> None:
    world.write(webhook(world))
    async with world.monitor(kill=kill) as office:
        post(office, "a")
        post(office, "b")
        await eventually(lambda: world.hook.told() == [("firing", ["a", "b"])])
        desk = office.desk
        await eventually(lambda: not any(led.is_changed for led in desk.ledgers.values()))
    async with world.monitor() as office:
        await eventually(lambda: len(office.desk.book.alerts) == 2)
        # Its detectors find one of the two again, and that the other one is over.
        post(office, "a")
        post(office, "b", active=False)
        await eventually(lambda: len(world.hook.told()) == 2)
        assert {a.state for a in office.desk.book.alerts.values()} == {
            AlertState.FIRING,
            AlertState.RESOLVED,
        }
    assert world.hook.told()[1] == ("firing", ["a", "b"])
    assert [a["state"] for a in world.hook.bodies[1]["alerts"]] == ["firing", "resolved"]


async def test_two_monitors_tell_once_and_the_second_goes_on_for_the_first(world: World) -> None:
    world.write(webhook(world))
    async with world.monitor("m1") as second:
        async with world.monitor("m2") as first:
            await eventually(lambda: first.desk.is_speaking or second.desk.is_speaking)
            speaks, waits = (first, second) if first.desk.is_speaking else (second, first)
            book = speaks.desk.book
            post(first, "a")
            post(second, "a")
            post(waits, "b")
            # By fingerprint one alert, by two holders.
            both = {frozenset({"m1", "m2"}), frozenset({waits.desk.name})}
            await eventually(lambda: {frozenset(a.holders) for a in book.alerts.values()} == both)
            await eventually(lambda: _agents(world) == {"a", "b"})
            assert not waits.desk.is_speaking
            listed = await waits.desk.listed()
            assert {alert.labels["agent"] for alert in listed} <= {"a", "b"}
        # Whichever spoke, the one that is left goes on with what was told.
        await eventually(lambda: second.desk.is_speaking)
        assert {a.labels["agent"] for a in second.desk.book.alerts.values()} == {"a", "b"}
        post(second, "c")
        await eventually(lambda: _agents(world) == {"a", "b", "c"})
    firsts = [a["labels"]["agent"] for body in world.hook.bodies for a in body["alerts"]]
    assert firsts[0] in ("a", "b")
    assert len(world.hook.bodies) <= 3


def _agents(world: World) -> set[str]:
    return {a["labels"]["agent"] for body in world.hook.bodies for a in body["alerts"]}


async def test_a_receiver_that_fails_delays_no_other_and_is_told_how_things_stand(
    world: World,
) -> None:
    other = {"name": "other", "webhook": {"url": world.other.url}}
    world.write(webhook(world, timeout="500ms"), other)
    world.hook.hangs = True
    async with world.monitor() as office:
        post(office, "a")
        await eventually(lambda: world.other.told() == [("firing", ["a"])])
        await eventually(lambda: world.hook.tries >= 2)
        world.hook.hangs, world.hook.status = False, 500
        tries = world.hook.tries
        post(office, "a", active=False)
        await eventually(lambda: len(world.other.told()) == 2)
        await eventually(lambda: world.hook.tries >= tries + 3)
        world.hook.status, world.hook.location = 302, world.other.url
        tries = world.hook.tries
        await eventually(lambda: world.hook.tries >= tries + 2)
        assert "receiver_failing" in states(office)
        world.hook.status = 200
        await eventually(lambda: world.hook.bodies != [])
        # It has heard of the beginning, maybe; so it has to hear of the end.
        ends = [a for b in world.hook.bodies for a in b["alerts"] if a["rule"] == "cpu_high"]
        assert [a["state"] for a in ends] == ["resolved"]
    # What it redirected to was told by its own courier alone.
    assert len([b for b in world.other.bodies if b["receiver"] == "pager"]) == 0


@pytest.mark.parametrize("allow", [[], ["10.0.0.0/8"]])
async def test_private_addresses_are_not_called_unless_they_are_allowed(
    world: World, allow: list[str]
) -> None:
    world.write(webhook(world), allow=allow)
    async with world.monitor() as office:
        post(office)
        await eventually(lambda: "receiver_failing" in states(office))
        text = next(
            a.summary for a in office.desk.book.alerts.values() if a.rule == "receiver_failing"
        )
        assert "loopback" in text
        assert "MUSTER_MONITOR_ALERTING" in text
    assert world.hook.tries == 0


async def test_silences_are_kept_and_hide(world: World) -> None:
    world.write(webhook(world))
    silence = Silence(
        id="s1",
        tenant="default",
        cluster=False,
        matchers=(parse_matcher("agent=a", "m"),),
        starts_at_ms=0,
        ends_at_ms=wall_ms() + 3_600_000,
        author="k",
        comment="",
        created_at_ms=0,
    )
    async with world.monitor() as office:
        await eventually(lambda: office.desk.is_speaking)
        silencing = Silencing(office.desk, wall_ms)
        with pytest.raises(Exception, match="366 days"):
            await silencing.silence(silence)
        from msgspec.structs import replace

        await silencing.silence(replace(silence, starts_at_ms=wall_ms()))
    async with world.monitor("m2") as office:
        await eventually(lambda: office.desk.is_speaking)
        post(office, "a")
        post(office, "b")
        await eventually(lambda: world.hook.told() == [("firing", ["b"])])
        silencing = Silencing(office.desk, wall_ms)
        assert [s.id for s in await silencing.silences_of("default")] == ["s1"]
        assert await silencing.silences_of("other") == []
        await silencing.end_silence("s1", "default")
        await eventually(lambda: len(world.hook.told()) == 2)
    assert world.hook.told()[1] == ("firing", ["a", "b"])


async def test_the_leaders_events_become_alerts_and_are_read_on_after_a_restart(
    world: World,
) -> None:
    def changed(state: agent_pb2.AgentState.ValueType, why: str = "") -> storage_pb2.Event:
        kind = storage_pb2.EVENT_KIND_AGENT_CHANGED
        return storage_pb2.Event(kind=kind, agent="a", agent_state=state, why=why)

    async with world.monitor() as office:
        await eventually(lambda: office.desk.is_speaking)
        emitted = changed(agent_pb2.AGENT_STATE_DOWN, "silent for 10.4 s")
        await world.storage.emit(emitted)
        emitted.at_ms = wall_ms()
        alarm = storage_pb2.Event(kind=storage_pb2.EVENT_KIND_CLUSTER_ALARM)
        alarm.note, alarm.why = "mass_failure", "60% of the agents are gone"
        await world.storage.emit(alarm)
        await eventually(lambda: states(office).get("cluster_alarm") is AlertState.FIRING)
        await eventually(lambda: office.desk._saved_position == "2")
    alarm = storage_pb2.Event(kind=storage_pb2.EVENT_KIND_CLUSTER_ALARM, note="mass_failure")
    await world.storage.emit(alarm)
    await world.storage.emit(changed(agent_pb2.AGENT_STATE_QUARANTINED, "it failed 5 tasks"))
    async with world.monitor() as office:
        await eventually(lambda: states(office).get("agent_quarantined") is AlertState.FIRING)
        assert states(office)["cluster_alarm"] is AlertState.RESOLVED
        await world.storage.emit(changed(agent_pb2.AGENT_STATE_READY))
        await eventually(lambda: states(office)["agent_quarantined"] is AlertState.RESOLVED)


async def test_without_storage_a_monitor_goes_on_and_a_new_one_begins_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(webhook(world))
    monkeypatch.setattr(desk_module, "ALONE_MS", 200)
    async with world.monitor() as office:
        await eventually(lambda: office.desk.is_speaking)
        world.storage.broken = Unavailable("redis")
        post(office, "a")
        await eventually(lambda: ("firing", ["a"]) in world.hook.told())
        world.storage.broken = None
        await eventually(lambda: not office.desk._is_away)
        kept = (str(MONITOR_TENANT), "ledgers/pager")
        await eventually(lambda: b"firing" in world.storage.values.get(kept, (b"",))[0])
    world.storage.broken = Unavailable("redis")
    async with world.monitor() as office:
        post(office, "c")
        await eventually(lambda: ("firing", ["c"]) in world.hook.told())
        world.storage.broken = None
        await eventually(lambda: len(office.desk.book.alerts) >= 2)


async def test_a_changed_document_is_taken_and_a_wrong_one_is_told_of(world: World) -> None:
    world.write()
    async with world.monitor() as office:
        post(office)
        await eventually(lambda: "cpu_high" in states(office))
        world.write(webhook(world))
        await eventually(lambda: world.hook.told() == [("firing", ["a"])])
        world.document.write_text("receivers: [{name: X}]\nfoo: 1\n")
        await eventually(lambda: "alerting_config_invalid" in states(office))
        post(office, "b")
        await eventually(lambda: ["a", "b"] in [agents for _, agents in _by_rule(world)])
        world.write(webhook(world))
        await eventually(lambda: states(office)["alerting_config_invalid"] is AlertState.RESOLVED)
    with pytest.raises(ConfigurationError, match="MUSTER_MONITOR_ALERTING"):
        office_module.read_settings(str(world.folder / "nowhere"))
    world.document.write_text("receivers: 3")
    with pytest.raises(ConfigurationError, match="a list of receivers is needed"):
        office_module.read_settings(str(world.document))


def _by_rule(world: World) -> Iterator[tuple[str, list[str]]]:
    for body in world.hook.bodies:
        if body["group"]["rule"] == "cpu_high":
            yield body["status"], sorted(a["labels"]["agent"] for a in body["alerts"])
