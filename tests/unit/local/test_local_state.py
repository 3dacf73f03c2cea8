"""The state directory: layout, lock, secrets, refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from muster.domain.errors import ConfigurationError, Conflict
from muster.local.state import (
    LAYOUT_VERSION,
    ClusterLock,
    Remembered,
    admin_key,
    default_state_dir,
    load_remembered,
    new_api_key,
    open_state_dir,
    running_pid,
    store_remembered,
    with_ports,
)

HOLD_LOCK = """
import sys, pathlib
from muster.local.state import ClusterLock, open_state_dir
lock = ClusterLock(open_state_dir(pathlib.Path(sys.argv[1])))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_default_follows_xdg(tmp_path: Path) -> None:
    assert default_state_dir({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "muster"
    assert default_state_dir({}) == Path.home() / ".local/state/muster"


def test_new_directory_is_closed_to_others(tmp_path: Path) -> None:
    state = open_state_dir(tmp_path / "a" / "b")
    assert mode(state.path) == 0o700
    assert state.log_dir.is_dir()
    assert state.log("etcd") == state.path / "logs" / "etcd.log"


def test_refuses_a_directory_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"thesis\.txt"):
        open_state_dir(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_killed_first_start_left_behind_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".cluster.json.4711").write_text("{")
    (tmp_path / "logs").mkdir()
    assert open_state_dir(tmp_path).log_dir.is_dir()


def test_refuses_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--state-dir"):
        open_state_dir(tmp_path / "file")


def test_refuses_a_directory_that_cannot_be_made() -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        open_state_dir(Path("/proc/nothing/here"))


def test_what_is_remembered_comes_back(tmp_path: Path) -> None:
    state = open_state_dir(tmp_path)
    fresh = load_remembered(state)
    assert fresh.ports == {}
    assert len(fresh.join_secret) == len(fresh.redis_password) == 64
    assert fresh.join_secret != fresh.redis_password
    stored = with_ports(fresh, {"http": 12345})
    store_remembered(state, stored)
    assert load_remembered(state) == stored
    assert mode(state.cluster_file) == 0o600


@pytest.mark.parametrize(
    ("layout", "said"),
    [(LAYOUT_VERSION + 1, "a newer Muster"), (LAYOUT_VERSION - 1, "an older Muster")],
)
def test_refuses_another_layout(tmp_path: Path, layout: int, said: str) -> None:
    state = open_state_dir(tmp_path)
    store_remembered(state, Remembered("a", "b", {}))
    text = json.loads(state.cluster_file.read_text()) | {"layout": layout}
    state.cluster_file.write_text(json.dumps(text))
    with pytest.raises(ConfigurationError, match=said):
        load_remembered(state)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layout": 1}', '{"layout": 1, "ports": 3}'])
def test_refuses_a_damaged_file(tmp_path: Path, text: str) -> None:
    state = open_state_dir(tmp_path)
    state.cluster_file.write_text(text)
    with pytest.raises(ConfigurationError, match="damaged"):
        load_remembered(state)


def test_admin_key_is_made_once(tmp_path: Path) -> None:
    state = open_state_dir(tmp_path)
    key, made = admin_key(state)
    assert made
    assert admin_key(state) == (key, False)
    assert mode(state.key_file) == 0o600


def test_api_keys_have_the_form_that_the_gateway_reads() -> None:
    assert re.fullmatch(r"mst_[0-9a-f]{12}_[0-9a-f]{64}", new_api_key())
    assert new_api_key() != new_api_key()


def test_lock_names_its_holder_and_refuses_a_second(tmp_path: Path) -> None:
    state = open_state_dir(tmp_path)
    assert running_pid(tmp_path) is None
    first = ClusterLock(state)
    first.acquire()
    assert running_pid(tmp_path) == os.getpid()
    with pytest.raises(Conflict, match=rf"pid {os.getpid()}"):
        ClusterLock(state).acquire()
    first.release()
    assert running_pid(tmp_path) is None


def test_lock_after_an_orderly_end_is_not_taken_over(tmp_path: Path) -> None:
    state = open_state_dir(tmp_path)
    for _ in range(2):
        lock = ClusterLock(state)
        lock.acquire()
        assert not lock.taken_over
        lock.release()


def test_lock_of_a_killed_holder_is_taken_over(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder.stdin, holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        assert running_pid(tmp_path) == holder.pid
        holder.kill()
        holder.wait()
    assert running_pid(tmp_path) is None
    lock = ClusterLock(open_state_dir(tmp_path))
    lock.acquire()
    assert lock.taken_over
    lock.release()


def test_nothing_runs_where_nothing_is(tmp_path: Path) -> None:
    assert running_pid(tmp_path / "nowhere") is None
    (tmp_path / "file").write_text("")
    assert running_pid(tmp_path / "file") is None
