"""The gateway as a process: how it starts, refuses to start and stops; what a task costs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from tests.gateway_fakes import SECRET, Cluster, running_cluster, until
from tests.polling import HANG_S
from tests.real_servers import free_port


def environment(**more: str) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("MUSTER_")}
    return {
        **own,
        "MUSTER_JOIN_SECRET": SECRET,
        "MUSTER_STORAGE": "127.0.0.1:9",
        "MUSTER_SCHEDULERS": "127.0.0.1:9",
        "MUSTER_HTTP_LISTEN": "127.0.0.1:0",
        **more,
    }


@asynccontextmanager
async def process(env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "muster_gateway",
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MUSTER_JOIN_SECRET", "short"),
        ("MUSTER_STORAGE", ""),
        ("MUSTER_HTTP_LISTEN", "nonsense"),
        ("MUSTER_BOOTSTRAP_KEY_FILE", "/nonexistent/admin.key"),
    ],
)
async def test_a_bad_configuration_is_one_line_and_code_78(key: str, value: str) -> None:
    async with process(environment(**{key: value})) as gateway:
        _, err = await asyncio.wait_for(gateway.communicate(), HANG_S)
        assert gateway.returncode == 78
        (line,) = err.decode().splitlines()
        assert key in line
        assert "short" not in line


async def test_a_taken_port_is_told() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        listen = f"127.0.0.1:{sock.getsockname()[1]}"
        async with process(environment(MUSTER_HTTP_LISTEN=listen)) as gateway:
            _, err = await asyncio.wait_for(gateway.communicate(), HANG_S)
            assert gateway.returncode == 78
            assert "MUSTER_HTTP_LISTEN" in err.decode()
            assert listen in err.decode()


async def test_it_starts_before_the_others_says_what_is_missing_and_stops_on_sigterm() -> None:
    port = free_port()
    env = environment(MUSTER_HTTP_LISTEN=f"127.0.0.1:{port}")
    async with (
        process(env) as gateway,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=HANG_S) as client,
    ):
        async with asyncio.timeout(HANG_S):
            while True:
                try:
                    response = await client.get("/readyz")
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
                else:
                    break
        assert response.status_code == 503
        assert "storage" in response.json()["detail"]
        gateway.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(gateway.communicate(), HANG_S)
        assert gateway.returncode == 0, err.decode()
        assert "Traceback" not in err.decode()


@asynccontextmanager
async def measured(
    tmp_path: Path,
) -> AsyncIterator[tuple[Cluster, httpx.AsyncClient, psutil.Process]]:
    """Fakes here, the gateway in a process of its own."""
    async with running_cluster() as cluster:
        key_file = tmp_path / "admin.key"
        key_file.write_text(cluster.new_key("admin").text)
        port = free_port()
        env = environment(
            MUSTER_HTTP_LISTEN=f"127.0.0.1:{port}",
            MUSTER_STORAGE=cluster.addresses["storage"],
            MUSTER_SCHEDULERS=cluster.addresses["scheduler"],
            MUSTER_REGISTRY=cluster.addresses["registry"],
            MUSTER_MONITORS=cluster.addresses["monitor"],
            MUSTER_BOOTSTRAP_KEY_FILE=str(key_file),
        )
        async with process(env) as gateway:
            cluster.url = f"http://127.0.0.1:{port}"
            client = cluster.client_with(key_file.read_text())
            ready = asyncio.Event()

            async def wait_ready() -> None:
                while not ready.is_set():
                    try:
                        if (await client.get("/readyz")).status_code == 200:
                            ready.set()
                    except httpx.TransportError:
                        await asyncio.sleep(0.02)

            await asyncio.wait_for(wait_ready(), HANG_S)
            yield cluster, client, psutil.Process(gateway.pid)


def cpu_s(gateway: psutil.Process) -> float:
    times = gateway.cpu_times()
    return float(times.user + times.system)


async def test_what_tasks_cost_the_gateway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints figures; asserts only that everything arrives."""
    async with measured(tmp_path) as (cluster, client, gateway):
        cluster.scheduler.echo = True
        body = json.dumps({"tasks": [{"skill": "echo", "input": {"n": n}} for n in range(10_000)]})
        figures = {}
        before = cpu_s(gateway)
        ids = (await client.post("/v1/tasks", content=body)).json()["ids"]
        await until(lambda: len(cluster.storage.events) >= 20_000)
        figures["submit 10,000, with their 20,000 events"] = (cpu_s(gateway) - before) * 1e6 / 1e4
        before = cpu_s(gateway)
        gathered = await client.post("/v1/results", json={"ids": ids, "wait": "60s"})
        figures["gather 10,000"] = (cpu_s(gateway) - before) * 1e6 / 1e4
        assert len(gathered.text.splitlines()) == 10_001
        assert gathered.text.endswith('{"open":[]}\n')
        count, at_once = 600, 16
        before, started = cpu_s(gateway), time.perf_counter()

        async def singles() -> None:
            for _ in range(count // at_once):
                made = await client.post("/v1/tasks", content=b'{"skill":"echo","input":1}')
                got = await client.get(f"/v1/tasks/{made.json()['id']}?wait=1m")
                assert got.json()["result"] == 1

        await asyncio.gather(*(singles() for _ in range(at_once)))
        done = count // at_once * at_once
        seconds = time.perf_counter() - started
        figures["single POST + long-poll GET"] = (cpu_s(gateway) - before) * 1e6 / done
        with capsys.disabled():
            print()
            for what, microseconds in figures.items():
                print(f"gateway CPU per task, {what}: {microseconds:.1f} µs")
            print(f"singles, fakes and client in one process: {2 * done / seconds:.0f} requests/s")
            print(f"gateway RSS: {gateway.memory_info().rss / 2**20:.0f} MiB")
