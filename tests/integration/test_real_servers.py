"""The test servers themselves: they answer, keep their data and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from tests.polling import HANG_S
from tests.real_servers import EtcdServer, RealServer, RedisServer


def test_redis_keeps_its_data_over_kill_and_restart(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("k", "v")
        endpoint = redis_server.endpoint
        redis_server.restart()
        assert redis_server.endpoint == endpoint
        assert client.get("k") == b"v"
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_etcd_restarts_on_its_endpoint(etcd_server: EtcdServer) -> None:
    endpoint, pid = etcd_server.endpoint, etcd_server.pid
    etcd_server.restart()
    assert etcd_server.endpoint == endpoint
    assert etcd_server.pid != pid


@pytest.mark.parametrize("kind", [EtcdServer, RedisServer])
def test_servers_die_with_a_killed_test_process(kind: type[RealServer], tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        f"from tests.real_servers import {kind.__name__} as Server\n"
        "server = Server(pathlib.Path(sys.argv[1]))\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=root
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    give_up = time.monotonic() + HANG_S
    while _alive(pid):
        assert time.monotonic() < give_up, f"{kind.__name__} outlived its test process"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    # One look: between two of them it may have gone.
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
