"""Compiled code is kept for the next process, and a folder that is of no use costs no plan."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster_scheduler.placement.compiled import disk_cache


def double(number: int) -> int:
    return 2 * number


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    base = tmp_path / "kernels"
    monkeypatch.setenv(disk_cache.FOLDER_VARIABLE, str(base))
    disk_cache.folder.cache_clear()
    yield base
    disk_cache.folder.cache_clear()


def used() -> Any:
    kernel = disk_cache.compiled(double)
    assert kernel(21) == 42
    return kernel


def files(base: Path) -> list[Path]:
    return sorted(p for p in base.rglob("*") if p.is_file())


def test_code_is_kept_and_found_again(base: Path) -> None:
    assert used().stats.cache_hits == {}
    assert files(base)
    assert base.stat().st_mode & 0o777 == 0o700
    assert sum(used().stats.cache_hits.values()) == 1


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\x80\x04K\x01."])
def test_damaged_files_are_compiled_over(base: Path, damage: bytes) -> None:
    used()
    for path in files(base):
        path.write_bytes(damage)
    assert used().stats.cache_hits == {}
    used()
    assert sum(used().stats.cache_hits.values()) == 1, "the damage was not mended"


def test_a_folder_that_others_can_write_is_not_read(base: Path) -> None:
    base.mkdir()
    base.chmod(0o777)
    used()
    assert files(base) == []
    assert "can be written by others" in str(disk_cache.why_unusable())


def test_without_a_folder_code_is_compiled_and_not_kept(base: Path) -> None:
    base.write_text("a file is in the way")
    used()
    assert "compiled code cannot be kept" in str(disk_cache.why_unusable())


def test_a_folder_that_vanishes_is_made_again(base: Path) -> None:
    disk_cache.folder()
    kernel = disk_cache.compiled(double)
    for path in sorted(base.rglob("*"), reverse=True):
        path.rmdir()
    assert kernel(21) == 42
    assert files(base)


def test_old_versions_go(base: Path) -> None:
    for index in range(12):
        (base / f"v{index:02}").mkdir(parents=True)
        os.utime(base / f"v{index:02}", (index, index))
    base.chmod(0o700)
    kept = disk_cache.folder()
    assert sorted(p.name for p in base.iterdir()) == sorted(
        [kept.name, *(f"v{index:02}" for index in range(5, 12))]
    )


def test_the_scheduler_imports_no_numba() -> None:
    code = "import sys, muster_scheduler.__main__; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
