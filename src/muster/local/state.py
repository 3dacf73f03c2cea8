"""The state directory of an embedded cluster: its layout, its lock, what it remembers.

    <state dir>/            mode 0700: everything in it belongs to one cluster
      lock                  held (flock) while a cluster runs; holds the parent's pid
      cluster.json          layout version, ports, secrets (0600)
      admin.key             the administrator's API key (0600)
      run/                  Redis' configuration
      etcd/ redis/ blobs/   data
      services/<name>/      each service's folder
      agents/<id>/          each agent's folder
      logs/<name>.log       one log per process; `up.log` is the parent's

The lock is the truth about "does it run": the kernel releases it however the parent dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from muster.domain.errors import ConfigurationError, Conflict

# Raised with each change of the layout that an older Muster would misread.
LAYOUT_VERSION = 1

_FOLDERS = ("run", "etcd", "redis", "blobs", "services", "agents", "logs")
_FILES = ("lock", "cluster.json", "admin.key")
# The holder writes its pid right after it takes the lock; a reader that comes between waits.
_PID_WAIT_S = 1.0
_KEY_ID_BYTES = 6
_SECRET_BYTES = 32


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/muster`, else `~/.local/state/muster`."""
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "muster"


@dataclass(frozen=True, slots=True)
class StateDir:
    """Where each thing of one embedded cluster lies. `path` is absolute."""

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def cluster_file(self) -> Path:
        return self.path / "cluster.json"

    @property
    def key_file(self) -> Path:
        return self.path / "admin.key"

    @property
    def run_dir(self) -> Path:
        return self.path / "run"

    @property
    def log_dir(self) -> Path:
        return self.path / "logs"

    def service_dir(self, name: str) -> Path:
        return self.path / "services" / name

    def agent_dir(self, ident: str) -> Path:
        return self.path / "agents" / ident

    def log(self, name: str) -> Path:
        return self.log_dir / f"{name}.log"


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a cluster keeps from one `up` to the next."""

    join_secret: str
    redis_password: str
    ports: Mapping[str, int]


def open_state_dir(path: Path) -> StateDir:
    """The directory with its folders, made where missing.

    Raises ConfigurationError when it cannot be written or holds something else.
    """
    state = StateDir(path.expanduser().absolute())
    try:
        _refuse_foreign(state.path)
        # Only what Muster makes itself is closed to others.
        state.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in _FOLDERS:
            (state.path / folder).mkdir(mode=0o700, exist_ok=True)
        writable = os.access(state.path, os.W_OK | os.X_OK)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    if not writable:
        raise _unusable(path, "Permission denied")
    return state


def _unusable(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError("--state-dir", str(path), f"it cannot be written: {why}")


def _refuse_foreign(path: Path) -> None:
    if not path.is_dir():
        return
    # What `write_private` leaves behind when it is killed is ours, too.
    halves = tuple(f".{name}." for name in _FILES)
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(halves)}
    strangers = sorted(names - {*_FOLDERS, *_FILES})
    if strangers and not (path / "cluster.json").exists():
        raise ConfigurationError(
            "--state-dir",
            str(path),
            f"it must be new, empty or a cluster's, and it holds {strangers[0]!r}",
        )


class ClusterLock:
    """Says that a cluster runs on a state directory, and which process is its parent."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._fd = -1
        # True when the last holder did not end in order (kill -9, power cut).
        self.taken_over = False

    def acquire(self) -> None:
        """Raises Conflict, naming the pid, when a cluster runs there already."""
        try:
            fd = os.open(self._state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self._state.path, error.strerror or str(error)) from error
        while not _take(fd):
            # Whoever only looks holds the lock for a moment, too.
            if (pid := running_pid(self._state.path)) is not None:
                os.close(fd)
                raise Conflict(
                    f"a cluster runs on {self._state.path} already (pid {pid}); "
                    "`muster status` shows it, `muster down` ends it"
                )
        self._fd = fd
        self.taken_over = bool(os.pread(fd, 32, 0).strip())
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Marks an orderly end; harmless when it is not held."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def _take(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running_pid(path: Path) -> int | None:
    """Pid of the parent of the cluster that runs on `path`; None when none does."""
    give_up = time.monotonic() + _PID_WAIT_S
    while True:
        try:
            fd = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unusable(path, error.strerror or str(error)) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 32, 0).strip()
            if text.isdigit():
                return int(text)
            if time.monotonic() > give_up:
                raise Conflict(f"{path / 'lock'} is held and names no process") from None
            time.sleep(0.01)
        else:
            return None
        finally:
            os.close(fd)


def load_remembered(state: StateDir) -> Remembered:
    """What earlier starts left behind, or new secrets and no ports.

    Raises ConfigurationError for a layout of another version or a file that is no JSON object.
    """
    try:
        text = state.cluster_file.read_text()
    except FileNotFoundError:
        return Remembered(_secret(), _secret(), {})
    except OSError as error:
        raise _unusable(state.path, error.strerror or str(error)) from error
    try:
        stored = json.loads(text)
        version = stored["layout"]
        if version == LAYOUT_VERSION:
            return Remembered(
                join_secret=str(stored["join_secret"]),
                redis_password=str(stored["redis_password"]),
                ports={str(name): int(port) for name, port in stored["ports"].items()},
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            "--state-dir", str(state.path), f"its cluster.json is damaged ({error!r})"
        ) from error
    age = "a newer" if isinstance(version, int) and version > LAYOUT_VERSION else "an older"
    raise ConfigurationError(
        "--state-dir",
        str(state.path),
        f"{age} Muster wrote it (layout {version}; this one reads {LAYOUT_VERSION})",
    )


def store_remembered(state: StateDir, remembered: Remembered) -> None:
    """Replaces cluster.json at once: a reader sees the old or the new one."""
    write_private(
        state.cluster_file,
        json.dumps(
            {
                "layout": LAYOUT_VERSION,
                "join_secret": remembered.join_secret,
                "redis_password": remembered.redis_password,
                "ports": dict(sorted(remembered.ports.items())),
            },
            indent=2,
        ),
    )


def with_ports(remembered: Remembered, ports: Mapping[str, int]) -> Remembered:
    """The same cluster on these ports."""
    return replace(remembered, ports=ports)


def admin_key(state: StateDir) -> tuple[str, bool]:
    """The administrator's API key, and whether it was made just now."""
    try:
        text = state.key_file.read_text().strip()
    except FileNotFoundError:
        text = ""
    if text:
        return text, False
    key = new_api_key()
    write_private(state.key_file, key)
    return key, True


def new_api_key() -> str:
    """`mst_<id>_<secret>`: 12 hex digits that name the key, 64 that are 256 random bits."""
    return f"mst_{os.urandom(_KEY_ID_BYTES).hex()}_{_secret()}"


def write_private(path: Path, text: str) -> None:
    """Replaces a file that only its owner may read; durable when this returns."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(fresh, path)


def _secret() -> str:
    return os.urandom(_SECRET_BYTES).hex()
