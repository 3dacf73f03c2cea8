"""The compiled loops become ready beside a working loop, or the plain pass stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from muster_scheduler import warming
from muster_scheduler.placement import fast


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_kernels", None)


async def test_kernels_are_loaded_once_their_code_is_on_disk() -> None:
    with capture_logs() as logs:
        await warming.warm_kernels()
    assert fast.is_loaded()
    assert [entry["log_level"] for entry in logs] == ["info"]


async def test_code_that_cannot_be_kept_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MUSTER_KERNEL_CACHE", str(tmp_path / "file"))
    with capture_logs() as logs:
        await warming.warm_kernels()
    assert not fast.is_loaded()
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "compiled code cannot be kept" in logs[0]["reason"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('no numba here')", "ImportError: no numba here"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("import time; time.sleep(60)", "TimeoutError: "),
    ],
)
async def test_a_compilation_that_fails_leaves_the_plain_pass(
    code: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "_COMPILE", code)
    monkeypatch.setattr(warming, "_COMPILE_TIMEOUT_S", 1.0)
    with capture_logs() as logs:
        await warming.warm_kernels()
    assert not fast.is_loaded()
    assert logs[0]["reason"] == reason
