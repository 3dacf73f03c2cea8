"""Real etcd and Redis processes for tests: free ports, own folder, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import IO, Self

from etcd3aio import _protobuf as pb
from tests.evidence import is_witness

from muster.etcd import wire
from muster.local.binaries import find_etcd, find_redis

__all__ = ["EtcdServer", "RealServer", "RedisServer", "find_etcd", "find_redis", "free_port"]

# Below Linux's ephemeral range (32768...), so that no outgoing connection takes the port of a
# server that is down for a moment; and below those of which `muster up` chooses (12,000...): to it
# a port that is only reserved looks free.
_PORTS = (8_100, 12_000)
# pytest-randomly gives every worker the same seed, which would give all the same ports.
_random = SystemRandom()

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
_START_ATTEMPTS = 5

# The kernel's "parent" in PR_SET_PDEATHSIG is the thread that forked: one that lives as long as
# the process, so that servers may be started from any short-lived thread.
_spawner = ThreadPoolExecutor(1, "server-spawner")

# Dies with the test process, however that dies (prctl PR_SET_PDEATHSIG); it survives the exec.
_DIE_WITH_PARENT = (
    "import ctypes,os,sys;"
    "ctypes.CDLL(None).prctl(1,9);"
    "sys.exit(1) if os.getppid()!=int(sys.argv[1]) else os.execv(sys.argv[2],sys.argv[2:])"
)


# Bound, never listening: they keep ports from other test processes while a server is down, and
# let servers in, which all set SO_REUSEADDR.
_reserved: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of 127.0.0.1 that no other caller gets while this process lives."""
    while True:
        port = _random.randrange(*_PORTS)
        reservation = socket.socket()
        try:
            reservation.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            continue
        # Only now, so that two reservations exclude each other.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _reserved.append(reservation)
        return port


class StartError(Exception):
    """The server ended or did not answer in time; the text has the end of its log."""


class RealServer:
    """One server process on 127.0.0.1 whose data outlives stop, kill and restart."""

    name = "server"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log_path = self.folder / f"{self.name}.log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        is_witness(self)

    def testimony(self) -> tuple[str, str]:
        log = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return f"{self.log_path}", log

    @property
    def endpoint(self) -> str:
        """host:port"""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts and waits until it answers; keeps its ports once it has started with them."""
        assert not self.running, f"{self.name} runs already"
        if self.port:
            self._launch()
            return
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._choose_ports()
            try:
                self._launch()
            except StartError:
                # Another test may have taken a port between the choice and the bind.
                if attempt == _START_ATTEMPTS:
                    raise
            else:
                return

    def stop(self) -> None:
        """SIGTERM, then SIGKILL when it takes too long; harmless when it is not running."""
        if self._process is None:
            return
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """kill -9, then start on the same data and ports."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing from now on."""
        self._signal(signal.SIGSTOP)
        give_up = time.monotonic() + STOP_TIMEOUT_S
        while not self._stopped():
            assert time.monotonic() < give_up, f"{self.name} does not stop"
            time.sleep(0.001)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _launch(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = _spawner.submit(self._spawn, log).result()
        give_up = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                tail = self.log_path.read_text(errors="replace")[-2000:]
                self.kill()
                raise StartError(f"{self.name} did not start; its log ends with:\n{tail}")
            time.sleep(0.02)

    def _stopped(self) -> bool:
        # Its threads stop one by one, some after the signal was sent, and some may end before.
        states = []
        for stat in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                states.append(stat.read_text().rpartition(")")[2].split()[0])
        return bool(states) and all(state == "T" for state in states)

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        trampoline = (sys.executable, "-S", "-E", "-c", _DIE_WITH_PARENT, str(os.getpid()))
        return subprocess.Popen(
            [*trampoline, *self._command()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )

    def _exchange(self, request: bytes, answer_bytes: int = 4096) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as link:
                link.sendall(request)
                return link.recv(answer_bytes)
        except OSError:
            return b""

    def _choose_ports(self) -> None:
        self.port = free_port()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


class EtcdServer(RealServer):
    """A single-member etcd on the folder's `etcd-data`."""

    name = "etcd"

    def __init__(self, folder: Path, extra_args: tuple[str, ...] = ()) -> None:
        super().__init__(folder)
        self._extra_args = extra_args
        self._peer_port = 0

    @property
    def data_dir(self) -> Path:
        return self.folder / "etcd-data"

    def _choose_ports(self) -> None:
        self.port, self._peer_port = free_port(), free_port()

    def _command(self) -> list[str]:
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        return [
            str(find_etcd()),
            f"--name=test-{self.port}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=test-{self.port}={peer}",
            "--logger=zap",
            "--log-level=warn",
            *self._extra_args,
        ]

    def version(self) -> str:
        """Such as 3.5.1."""
        request = f"GET /version HTTP/1.1\r\nHost: {self.endpoint}\r\nConnection: close\r\n\r\n"
        answer = self._exchange(request.encode())
        return str(json.loads(answer.partition(b"\r\n\r\n")[2])["etcdserver"])

    async def commit(self) -> None:
        """The bundled etcd 3.5.1 may forget at a crash what it has not committed yet."""
        channel = wire.open_channel(self.endpoint)
        await pb.MaintenanceStub(channel).Hash(pb.HashRequest(), timeout=START_TIMEOUT_S)
        await channel.close()

    def _answers(self) -> bool:
        request = f"GET /health HTTP/1.1\r\nHost: {self.endpoint}\r\nConnection: close\r\n\r\n"
        answer = self._exchange(request.encode())
        return b" 200 " in answer.split(b"\r\n", 1)[0]


class RedisServer(RealServer):
    """A Redis that forces every write to disk before it answers, as production does."""

    name = "redis"

    def __init__(self, folder: Path, extra_args: tuple[str, ...] = ()) -> None:
        super().__init__(folder)
        self._extra_args = extra_args

    @property
    def url(self) -> str:
        return f"redis://{self.endpoint}/0"

    def _command(self) -> list[str]:
        return [
            str(find_redis()),
            *("--port", str(self.port)),
            *("--bind", "127.0.0.1"),
            *("--dir", str(self.folder)),
            *("--appendonly", "yes"),
            *("--appendfsync", "always"),
            *("--maxmemory-policy", "noeviction"),
            *("--save", ""),
            *self._extra_args,
        ]

    def _answers(self) -> bool:
        return self._exchange(b"PING\r\n") == b"+PONG\r\n"
