"""Fixtures that every test may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Lets tests say `from tests.real_servers import ...` however pytest is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Read when gRPC starts. While its threads work, its own handlers abort or hang a process that is
# forked here with code to run before its program, as `muster up`, which has no gRPC, starts its
# children.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from tests.evidence import testimonies
from tests.real_servers import EtcdServer, RedisServer

# How long an example takes says more about the machine's load than about the code.
# CI judges a change by the same examples each time; `make test` goes on looking for new ones.
settings.register_profile(
    "muster",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("muster")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += testimonies()
    return report


@pytest.fixture
def etcd_server(tmp_path: Path) -> Iterator[EtcdServer]:
    """A running, empty etcd."""
    server = EtcdServer(tmp_path / "etcd")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running, empty Redis."""
    server = RedisServer(tmp_path / "redis")
    try:
        server.start()
        yield server
    finally:
        server.stop()
