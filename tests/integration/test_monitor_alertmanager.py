"""Alerts in a real Alertmanager, by its own interface."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.polling import eventually
from tests.real_servers import free_port

from muster.outbound.addresses import AllowList
from muster.outbound.exchange import Outbound
from muster.rpc.clock import wall_ms
from muster_monitor.alerting import sending
from muster_monitor.alerting.alerts import fingerprint_of
from muster_monitor.alerting.book import AlertBook
from muster_monitor.alerting.grouping import Notification, ReceiverLedger
from muster_monitor.alerting.sending import Courier
from muster_monitor.alerting.settings import Receiver, parse
from muster_monitor.findings import Finding, Severity

BINARY = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
pytestmark = pytest.mark.skipif(
    BINARY is None,
    reason="no Alertmanager here: apt-get install prometheus-alertmanager has one",
)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    config = tmp_path / "alertmanager.yml"
    config.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(BINARY),
                f"--config.file={config}",
                f"--storage.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                # No gossip: this one is alone.
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class Look:
    """What Alertmanager shows as active, by agent, asked again and again."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v2/alerts"
        self.found: dict[str, dict[str, Any]] = {}

    async def run(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            while True:
                with suppress(httpx.TransportError):
                    answer = await client.get(self._url)
                    self.found = {each["labels"]["agent"]: each for each in answer.json()}
                await asyncio.sleep(0.1)

    def agents(self) -> set[str]:
        return set(self.found)


async def test_it_shows_what_fires_and_no_more_what_is_over(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(sending, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(sending, "LAST_PAUSE_S", 0.5)
    monkeypatch.setattr(sending, "MAX_RETRIES_PER_HOUR", 100_000)
    way = {"name": "am", "alertmanager": {"url": f"http://{address}", "resend": "1s"}}
    settings = parse(json.dumps({"allow": ["127.0.0.1"], "receivers": [way]}), "test")
    book, ledger = AlertBook(), ReceiverLedger("am")

    def post(agent: str, active: bool = True) -> None:
        labels = {"agent": agent, "zone.name": "z1"}
        finding = Finding(
            "cpu_high", labels, Severity.WARNING, active, "hot", wall_ms(), value=0.97
        )
        book.post(fingerprint_of("cpu_high", labels), finding, "m1", wall_ms())

    def due(receiver: Receiver) -> tuple[ReceiverLedger, Notification] | None:
        alerts = book.alerts.values()
        owed = ledger.due(alerts, receiver.rhythm, lambda _: False, wall_ms())
        return (ledger, owed[0]) if owed else None

    async def keep(_: ReceiverLedger) -> None:
        await asyncio.sleep(0)

    courier = Courier(
        settings.receivers[0],
        Outbound(AllowList.parse("127.0.0.1")),
        due=due,
        keep=keep,
        failing=lambda _name, _why: None,
        now_ms=wall_ms,
        wall_ms=wall_ms,
    )
    post("a")
    post("b")
    look = Look(address)
    tasks = [asyncio.create_task(courier.run()), asyncio.create_task(look.run())]
    try:
        await eventually(lambda: look.agents() == {"a", "b"})
        assert look.found["a"]["labels"] == {
            "alertname": "cpu_high",
            "agent": "a",
            "severity": "warning",
            "zone_name": "z1",
        }
        assert look.found["a"]["annotations"] == {"summary": "hot", "value": "0.97"}
        before = look.found["b"]
        post("a", active=False)
        await eventually(lambda: look.agents() == {"b"})
        # It is sent again while it fires, as the same alert.
        await eventually(lambda: look.found["b"]["updatedAt"] != before["updatedAt"])
        assert look.found["b"]["startsAt"] == before["startsAt"]
        await eventually(lambda: not ledger.owed(list(book.alerts.values())))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
