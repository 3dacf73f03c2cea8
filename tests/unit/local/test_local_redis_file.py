"""Zeros behind Redis' append-only file go, all else stays."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.local.binaries import find_redis
from muster.local.redis_file import COMPLAINT, mend

SET = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n"
SAID = f"123:M 23 Nov # {COMPLAINT}: make a backup"


def written(folder: Path, content: bytes) -> Path:
    path = folder / "appendonly.aof"
    path.write_bytes(content)
    return path


@given(half=st.integers(0, len(SET)), zeros=st.integers(1, 3 << 20))
def test_only_zeros_are_cut_and_the_file_is_kept(
    half: int, zeros: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("redis")
    sound = SET + SET[:half]
    path = written(folder, sound + bytes(zeros))
    said = mend(folder, SAID, "before-now")
    assert f"{zeros} zeros" in said
    assert path.read_bytes() == sound
    assert (folder / "appendonly.aof.before-now").stat().st_size == len(sound) + zeros


def test_other_damage_is_told_and_left(tmp_path: Path) -> None:
    path = written(tmp_path, SET + b"\0\0" + SET)
    assert "redis-check-aof" in mend(tmp_path, SAID, "x")
    assert path.read_bytes() == SET + b"\0\0" + SET


def test_nothing_is_touched_when_redis_ended_for_another_reason(tmp_path: Path) -> None:
    path = written(tmp_path, SET + b"\0\0")
    assert mend(tmp_path, "Could not create server TCP listening socket", "x") == ""
    assert mend(tmp_path / "nothing", SAID, "x") == ""
    assert path.read_bytes() == SET + b"\0\0"


def test_of_several_files_the_newest_is_meant(tmp_path: Path) -> None:
    parts = tmp_path / "appendonlydir"
    parts.mkdir()
    for number in (9, 10):
        path = parts / f"appendonly.aof.{number}.incr.aof"
        path.write_bytes(SET + b"\0")
        os.utime(path, (number, number))
    assert "10.incr.aof ended in 1 zeros" in mend(tmp_path, SAID, "x")
    assert (parts / "appendonly.aof.9.incr.aof").read_bytes() == SET + b"\0"


def test_redis_itself_refuses_the_one_and_takes_the_other(tmp_path: Path) -> None:
    path = written(tmp_path, SET + SET[:9] + bytes(5000))

    def start() -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {"port": port, "bind": "127.0.0.1", "dir": tmp_path, "appendonly": "yes"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        redis = subprocess.Popen(
            [str(find_redis(os.environ)), *words, "--logfile", "redis.log"],
            stdout=subprocess.DEVNULL,
        )
        log = tmp_path / "redis.log"
        give_up_s = time.monotonic() + 60
        while redis.poll() is None and time.monotonic() < give_up_s:
            if log.exists() and "Ready to accept connections" in log.read_text():
                break
            time.sleep(0.02)
        redis.terminate()
        redis.wait(60)
        said = log.read_text()
        log.unlink()
        return said

    refused = start().splitlines()[-1]
    assert COMPLAINT in refused
    assert mend(tmp_path, refused, "before")
    assert "Ready to accept connections" in start()
    assert path.read_bytes().startswith(SET)
