"""Two of each service: one is killed or stopped under load, the other goes on, nothing is lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.e2e.test_up_cli import Cli, eventually
from tests.polling import HANG_S

from muster import Client

_WORKERS = 2
# A stopped process costs seconds, and several times as many where other work has the processor.
_PATIENCE_S = 3 * HANG_S
# Tasks that are begun after a blow and come to their end, before it counts as survived.
_GOES_ON = 4


class Load:
    """Threads that submit a task, wait for its result, and begin anew."""

    def __init__(self, urls: list[str], key: str) -> None:
        self._target = (",".join(urls), key)
        self._over = threading.Event()
        self.done = 0
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(_WORKERS)]
        for thread in self._threads:
            thread.start()

    def _work(self, worker: int) -> None:
        with Client(*self._target, timeout=_PATIENCE_S, retry_for=_PATIENCE_S) as client:
            number = worker
            while not self._over.is_set():
                number += _WORKERS
                try:
                    result = client.run("echo", number)
                except Exception as error:  # noqa: BLE001  the test fails by it
                    self.failed.append(repr(error))
                    return
                if result != number:
                    self.failed.append(f"{number} gave {result}")
                self.done += 1

    def goes_on(self) -> None:
        wanted = self.done + _GOES_ON
        eventually(lambda: bool(self.failed) or self.done >= wanted, _PATIENCE_S)
        assert self.failed == []

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE_S)


class Pair:
    """A cluster with two of each service, under load."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.ready = cli.up("--agents", "2", "--replicas", "2")
        self.ports: dict[str, int] = json.loads((cli.state / "cluster.json").read_text())["ports"]
        self.load = Load(self.ready["urls"], self.ready["api_key"])

    def process(self, name: str) -> psutil.Process | None:
        for child in psutil.Process(self.ready["pid"]).children():
            try:
                if Path(child.cwd()).name == name:
                    return child
            except psutil.Error:
                continue
        return None

    def leader(self) -> str:
        """`scheduler` or `scheduler-2`."""
        found = ""
        by_address = {
            f"127.0.0.1:{self.ports[name]}": name for name in ("scheduler", "scheduler-2")
        }

        def look() -> bool:
            nonlocal found
            told = json.loads(self.cli.at_last("status", "--json"))["leader"]
            found = by_address.get(told, "")
            return bool(found)

        eventually(look)
        return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    cli = Cli(tmp_path_factory.mktemp("replicas"))
    try:
        pair = Pair(cli)
        try:
            yield pair
        finally:
            pair.load.close()
    finally:
        cli.run("down", "--state-dir", str(cli.state))


def kill(pair: Pair, name: str) -> None:
    """Work goes on without it, and it comes back."""
    killed = pair.process(name)
    assert killed is not None
    killed.kill()
    pair.load.goes_on()
    eventually(lambda: (pair.process(name) or killed).pid != killed.pid)


def stop(pair: Pair, name: str) -> None:
    """Work goes on while it says nothing, and after it has been continued."""
    stopped = pair.process(name)
    assert stopped is not None
    stopped.suspend()
    try:
        pair.load.goes_on()
    finally:
        stopped.resume()
    pair.load.goes_on()


@pytest.mark.timeout(600)
def test_work_goes_on_when_one_of_two_is_killed_or_stopped_and_each_task_is_there_once(
    pair: Pair,
) -> None:
    for service in ("gateway", "registry", "monitor", "storage"):
        # All use the first one; once it was killed, the second.
        kill(pair, service)
        stop(pair, f"{service}-2")
    kill(pair, pair.leader())
    stop(pair, pair.leader())
    pair.load.close()
    assert pair.load.failed == []
    counted = json.loads(pair.cli.at_last("status", "--json"))["tasks"]
    assert {state: n for state, n in counted.items() if n} == {"SUCCEEDED": pair.load.done}
    states = [a["state"] for a in json.loads(pair.cli.at_last("agents", "--json"))["items"]]
    assert states == ["READY", "READY"]
