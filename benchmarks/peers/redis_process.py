"""A Redis of a driver's own, on loopback, with the durability that a variant asks for."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from muster.local.binaries import find_redis

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 10.0


class RedisProcess:
    """Running from construction until `stop`."""

    def __init__(self, folder: Path, *, synced: bool) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        durability = (
            ("--appendonly", "yes", "--appendfsync", "always") if synced else ("--appendonly", "no")
        )
        with (folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(find_redis()),
                    *("--bind", "127.0.0.1", "--port", str(self._port)),
                    *("--dir", str(folder), "--save", "", "--maxmemory-policy", "noeviction"),
                    *durability,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        give_up = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.stop()
                raise RuntimeError("redis-server did not start: " + _tail(folder / "redis.log"))
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL when that takes too long."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1.0) as link:
                link.sendall(b"PING\r\n")
                return link.recv(64) == b"+PONG\r\n"
        except OSError:
            return False


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-500:]


def redis_version() -> str:
    """Of the server that `RedisProcess` starts."""
    shown = subprocess.run(
        [str(find_redis()), "--version"], capture_output=True, text=True, timeout=10, check=True
    )
    words = [word for word in shown.stdout.split() if word.startswith("v=")]
    return words[0].removeprefix("v=") if words else "unknown"
