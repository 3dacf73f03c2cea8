"""Which etcd and Redis an embedded cluster picks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from muster.domain.errors import MissingDependency
from muster.local import binaries
from muster.local.binaries import find_etcd, find_redis, parse_version


def program(folder: Path, name: str, banner: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{banner}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(package: str, relative: str) -> None:
        return None

    monkeypatch.setattr(binaries, "_in_wheel", nothing)


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("etcd Version: 3.5.1\nGit SHA: e8732fb5f\nGo Version: go1.16.3", (3, 5, 1)),
        ("Redis server v=6.2.14 sha=40305114:0 malloc=libc bits=64", (6, 2, 14)),
        ("etcd Version: 3.6.0-rc.1", (3, 6, 0)),
        ("no such option", None),
    ],
)
def test_reads_the_version_from_a_banner(banner: str, version: tuple[int, ...] | None) -> None:
    assert parse_version(banner) == version


def test_the_environment_comes_first_whatever_its_version(tmp_path: Path) -> None:
    chosen = program(tmp_path, "old-etcd", "etcd Version: 3.3.0")
    program(tmp_path, "etcd", "etcd Version: 3.5.9")
    env = {"MUSTER_ETCD": str(chosen), "PATH": str(tmp_path)}
    assert find_etcd(env) == chosen


@pytest.mark.parametrize(
    ("find", "name", "banner"),
    [
        (find_etcd, "etcd", "etcd Version: 3.5.5"),
        (find_redis, "redis-server", "Redis server v=6.2.0 sha=0"),
    ],
)
def test_a_recent_one_on_the_path_comes_before_the_wheel(
    tmp_path: Path, find: Callable[[dict[str, str]], Path], name: str, banner: str
) -> None:
    assert find({"PATH": str(tmp_path)}) != tmp_path / name
    installed = program(tmp_path, name, banner)
    assert find({"PATH": str(tmp_path)}) == installed


def test_an_old_one_on_the_path_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path, "etcd", "etcd Version: 3.5.4")
    assert find_etcd({"PATH": str(tmp_path)}).parent != tmp_path


@pytest.mark.usefixtures("no_wheels")
def test_says_what_to_do_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match=r"MUSTER_ETCD .* etcd ≥ 3\.5\.5"):
        find_etcd({"PATH": str(tmp_path)})
    with pytest.raises(MissingDependency, match=r"MUSTER_REDIS .* redis-server ≥ 6\.2"):
        find_redis({"PATH": str(tmp_path)})


def test_names_an_environment_choice_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match=r"MUSTER_ETCD=.*absent is not an executable file"):
        find_etcd({"MUSTER_ETCD": str(tmp_path / "absent"), "PATH": str(tmp_path)})
