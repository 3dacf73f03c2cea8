"""`up` and `down` as commands, with stand-ins for etcd, Redis and the services."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.polling import HANG_S
from tests.real_servers import free_port

from muster.local.ports import SERVICES

HERE = Path(__file__).parent
IDLE = f"#!{sys.executable} -S\nimport time\ntime.sleep(600)\n"


class Cluster:
    """One state directory, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.environ = {
            **os.environ,
            "PYTHONPATH": f"{folder / 'packages'}:{HERE}",
            "MUSTER_ETCD": str(self._program(folder, "etcd")),
            "MUSTER_REDIS": str(self._program(folder, "redis-server")),
            "MUSTER_PROFILE": str(folder / "profile.json"),
        }
        for name in SERVICES:
            package = folder / "packages" / f"muster_{name}"
            package.mkdir(parents=True)
            (package / "__init__.py").write_text("")
            (package / "__main__.py").write_text(
                f"from fake_service import main\n\nmain({name!r})\n"
            )

    def _program(self, folder: Path, name: str) -> Path:
        path = folder / name
        path.write_text(IDLE)
        path.chmod(0o755)
        return path

    def argv(self, command: str, *options: str) -> list[str]:
        agents = ["--agents", "0"] if command == "up" else []
        where = ["--state-dir", str(self.state)]
        return [sys.executable, "-m", "muster.local", command, *agents, *where, *options]

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(command, *options),
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    def up(self) -> dict[str, object]:
        done = self.run("up", "--detach", "--json")
        assert done.returncode == 0, done.stderr
        ready: dict[str, object] = json.loads(done.stdout)
        return ready

    def parent(self) -> psutil.Process:
        return psutil.Process(int((self.state / "lock").read_text()))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    assert cluster.run("down").returncode == 0


def test_up_says_where_it_is_and_down_ends_it(cluster: Cluster) -> None:
    ready = cluster.up()
    assert list(ready) == ["url", "api_key", "pid", "state_dir", "log_dir", "urls"]
    assert ready["urls"] == [ready["url"]]
    parent = cluster.parent()
    assert ready["pid"] == parent.pid
    assert ready["state_dir"] == str(cluster.state)
    assert ready["api_key"] == (cluster.state / "admin.key").read_text().strip()
    assert os.getsid(parent.pid) == parent.pid
    children = parent.children()
    assert len(children) == 7
    profile = json.loads(Path(cluster.environ["MUSTER_PROFILE"]).read_text())
    assert profile["url"] == ready["url"]

    done = cluster.run("down", "--json")
    assert json.loads(done.stdout) == {"state_dir": str(cluster.state), "outcome": "ended"}
    assert not any(alive(child) for child in [parent, *children])
    again = cluster.run("down")
    assert again.returncode == 0
    assert "no cluster runs" in again.stdout


def test_a_second_up_is_refused_in_one_sentence(cluster: Cluster) -> None:
    pid = cluster.up()["pid"]
    for options in ((), ("--detach",)):
        refused = cluster.run("up", *options)
        assert refused.returncode == 1
        assert refused.stdout == ""
        assert refused.stderr.count("\n") == 1
        assert f"pid {pid}" in refused.stderr


def test_another_up_continues_on_the_same_ports_and_key(cluster: Cluster) -> None:
    first = cluster.up()
    assert cluster.run("down").returncode == 0
    second = cluster.up()
    assert {**second, "pid": 0} == {**first, "pid": 0}


def test_after_kill_9_nothing_is_left_and_up_takes_over(cluster: Cluster) -> None:
    first = cluster.up()
    parent = cluster.parent()
    children = parent.children(recursive=True)
    parent.kill()
    _, alive = psutil.wait_procs(children, timeout=HANG_S)
    assert alive == []
    assert cluster.up()["url"] == first["url"]


def test_foreground_prints_one_line_and_stays_until_told(cluster: Cluster) -> None:
    with subprocess.Popen(
        cluster.argv("up", "--json"), env=cluster.environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["pid"] == process.pid
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 0
        assert process.stdout.read() == ""
    assert not any(alive(child) for child in children)


def test_a_dead_service_is_started_again(cluster: Cluster) -> None:
    cluster.up()
    parent = cluster.parent()
    storage = next(c for c in parent.children() if "muster_storage" in _cmdline(c))
    storage.kill()
    within(
        lambda: any(
            c.pid != storage.pid and "muster_storage" in " ".join(_cmdline(c))
            for c in parent.children()
        )
    )
    assert "storage was killed by SIGKILL" in (cluster.state / "logs" / "up.log").read_text()


def alive(process: psutil.Process) -> bool:
    """A zombie whose parent is slow is dead all the same."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("options", [(), ("--detach",)])
def test_a_wrong_configuration_ends_the_start_with_its_sentence(
    cluster: Cluster, options: tuple[str, ...]
) -> None:
    cluster.environ["MUSTER_FAKE_MONITOR"] = "exit:78:muster monitor: MUSTER_X=1 is not accepted"
    failed = cluster.run("up", *options)
    assert failed.returncode == 1
    assert failed.stdout == ""
    expected = "muster: monitor cannot start: MUSTER_X=1 is not accepted\n"
    assert failed.stderr.splitlines(keepends=True)[-1] == expected
    assert "no cluster runs" in cluster.run("down").stdout


def test_a_port_that_is_taken_is_named(cluster: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = cluster.run("up", "--port", str(port))
    assert refused.returncode == 1
    assert refused.stderr == (
        f"muster: --port={port} is not accepted; another program listens on 127.0.0.1:{port}\n"
    )


@pytest.mark.parametrize("given", [False, True])
def test_a_port_that_is_taken_while_it_starts_is_replaced_unless_it_was_given(
    cluster: Cluster, tmp_path: Path, given: bool
) -> None:
    go_on = tmp_path / "go-on"
    cluster.environ["MUSTER_FAKE_GATEWAY"] = f"await:{go_on}"
    wanted = free_port()
    options = ("--port", str(wanted)) if given else ()
    with subprocess.Popen(
        cluster.argv("up", "--json", "--detach", *options),
        env=cluster.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        remembered = cluster.state / "cluster.json"
        within(remembered.exists)
        ports = json.loads(remembered.read_text())["ports"]
        with socket.create_server(("127.0.0.1", ports["http"])):
            go_on.touch()
            said, errors = process.communicate(timeout=150)
    if given:
        assert process.returncode == 1
        assert said == ""
        assert errors == (
            f"muster: --port={wanted} is not accepted; "
            f"another program listens on 127.0.0.1:{wanted}\n"
        )
    else:
        assert process.returncode == 0, errors
        now = json.loads(remembered.read_text())["ports"]
        assert now == ports | {"http": now["http"]}
        assert now["http"] != ports["http"]
        assert json.loads(said)["url"] == f"http://127.0.0.1:{now['http']}"
        log = (cluster.state / "logs" / "up.log").read_text()
        assert f"another program has taken port {ports['http']}" in log


def within(check: Callable[[], bool]) -> None:
    give_up = time.monotonic() + HANG_S
    while not check():
        assert time.monotonic() < give_up, f"it did not come true within {HANG_S:g} s"
        time.sleep(0.01)


def test_a_missing_program_comes_with_advice(cluster: Cluster) -> None:
    cluster.environ["MUSTER_ETCD"] = "/no/such/etcd"
    refused = cluster.run("up", "--detach")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "MUSTER_ETCD=/no/such/etcd" in refused.stderr


def test_a_stop_during_the_start_leaves_nothing(cluster: Cluster) -> None:
    cluster.environ["MUSTER_FAKE_GATEWAY"] = "unready:never will be"
    with subprocess.Popen(
        cluster.argv("up"), env=cluster.environ, stderr=subprocess.PIPE, text=True
    ) as process:
        parent = psutil.Process(process.pid)
        within(lambda: len(parent.children()) >= 7)
        children = parent.children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 1
        assert process.stderr is not None
        assert "stopped before it was ready" in process.stderr.read()
    assert not any(alive(child) for child in children)


@pytest.mark.parametrize("ignored", [True, False])
def test_a_closed_terminal_ends_it_unless_that_is_ignored(cluster: Cluster, ignored: bool) -> None:
    # In the new program and not between fork and exec: this process has threads, of gRPC.
    then = (
        "import os, signal, sys;"
        f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'});"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", then, *cluster.argv("up", "--json")],
        env=cluster.environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        if ignored:
            assert cluster.run("up").returncode == 1
            process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0


def test_a_reader_that_has_seen_enough_does_not_end_it(cluster: Cluster) -> None:
    with subprocess.Popen(
        cluster.argv("up"), env=cluster.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        profile = Path(cluster.environ["MUSTER_PROFILE"])
        within(profile.exists)
        assert cluster.run("up").returncode == 1
        assert cluster.run("down").returncode == 0
        assert process.wait(HANG_S) == 0
        assert process.stderr.read() == b""
