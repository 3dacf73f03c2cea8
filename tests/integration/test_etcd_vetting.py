"""Services look at the version of a real etcd when they start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.polling import HANG_S, eventually
from tests.real_servers import EtcdServer
from tests.service_process import SECRET, ServiceProcess

from muster.local.binaries import parse_version

_DEBIAN = Path("/usr/bin/etcd")
_NOWHERE = "127.0.0.1:1"


def environment(service: str, etcd: EtcdServer) -> dict[str, str]:
    """The least that the service runs with."""
    env = {"MUSTER_ETCD_ENDPOINTS": etcd.endpoint, "MUSTER_STORAGE": _NOWHERE}
    return env | ({"MUSTER_REGISTRY": _NOWHERE} if service == "scheduler" else {})


class DebianEtcd(EtcdServer):
    """The distribution's etcd 3.4 on a folder of its own."""

    def _command(self) -> list[str]:
        return [str(_DEBIAN), *super()._command()[1:]]


@pytest.mark.parametrize("service", ["registry", "scheduler"])
def test_a_damaged_etcd_is_refused_with_one_sentence(
    service: str, etcd_server: EtcdServer, tmp_path: Path
) -> None:
    version = etcd_server.version()
    if not "3.5.0" <= version <= "3.5.2":
        pytest.skip(f"the etcd at hand is {version}, which is good")
    ended = subprocess.run(
        [sys.executable, "-m", f"muster_{service}"],
        env={
            "PATH": os.environ["PATH"],
            "MUSTER_JOIN_SECRET": SECRET,
            "MUSTER_LISTEN": "127.0.0.1:0",
            "MUSTER_METRICS_LISTEN": "127.0.0.1:0",
            "MUSTER_STATE_DIR": str(tmp_path),
            **environment(service, etcd_server),
        },
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert ended.returncode == 78
    said = ended.stderr.strip().splitlines()[-1]
    assert f"it runs {version}: etcd 3.5.0 to 3.5.2 may lose or change committed data" in said
    assert "replace it by 3.5.5 or newer" in said


@pytest.fixture
def debian_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """Runs; skips where the package is not installed, or is another version."""
    if not _DEBIAN.exists():
        pytest.skip("no /usr/bin/etcd: apt-get install etcd-server")
    banner = subprocess.run([_DEBIAN, "--version"], capture_output=True, text=True, check=True)
    version = parse_version(banner.stdout) or ()
    if not (3, 4, 21) <= version < (3, 5):
        pytest.skip(f"/usr/bin/etcd is {version}, not a good 3.4")
    etcd = DebianEtcd(tmp_path / "etcd")
    etcd.start()
    yield etcd
    etcd.stop()


async def test_the_etcd_of_debian_is_good(debian_etcd: EtcdServer, tmp_path: Path) -> None:
    services = [
        ServiceProcess(name, tmp_path / name, environment(name, debian_etcd))
        for name in ("registry", "scheduler")
    ]
    registry, scheduler = services
    try:
        for service in services:
            await asyncio.to_thread(service.start)
        await eventually(lambda: registry.get("/readyz")[0] == 200)
        # It has campaigned and won, and asks storage for a term.
        elected = "it is elected, and storage has not given it a term yet"
        await eventually(lambda: scheduler.get("/readyz") == (503, f"{elected}\n"))
    finally:
        for service in services:
            service.stop()
