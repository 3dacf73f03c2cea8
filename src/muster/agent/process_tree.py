"""Linux: what a process may do, and how a whole tree of processes is ended."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Collection
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def flush_c_streams() -> None:
    """Writes what C code has buffered for its standard output."""
    _libc.fflush(None)


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """This process receives `signum` when `parent` ends; it exits now if that has happened."""
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants whose parents end become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def confine(*, max_files: int, address_space_bytes: int) -> None:
    """Limits for what runs tasks: no core dumps, bounded files, no new privileges.

    `address_space_bytes` 0 = no limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = max_files if hard == resource.RLIM_INFINITY else min(max_files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if address_space_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _children_by_parent() -> dict[int, list[int]]:
    """Children by parent, of all processes that can be seen."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as stat:
                content = stat.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The name in parentheses may hold spaces and parentheses; the state and parent follow.
        parent = int(content.rpartition(b")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry))
    return children


def descendants(root: int) -> list[int]:
    """All processes below `root` now, parents before children."""
    children = _children_by_parent()
    found: list[int] = []
    pending = [root]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def _own_children() -> list[int]:
    pid = os.getpid()
    try:
        with open(f"/proc/self/task/{pid}/children", "rb") as listing:
            return [int(child) for child in listing.read().split()]
    except FileNotFoundError:
        # A kernel without CONFIG_PROC_CHILDREN: a look at all processes, a few milliseconds.
        return _children_by_parent().get(pid, [])


def kill_orphans_of_session(session: int, known: Collection[int]) -> None:
    """SIGKILL for children of this process that are not `known` and belong to the session.

    They lost their parents and came here; their session tells whose they were. A session that
    was left by setsid and a double fork tells nothing: its processes end with the runtime.
    """
    for pid in _own_children():
        if pid in known:
            continue
        try:
            if os.getsid(pid) == session:
                send_signal(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def send_signal(pid: int, signum: int) -> None:
    """To one process; one that is gone needs none."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def signal_group(leader: int, signum: int) -> None:
    """To the process group, and to its leader in case that has not made the group yet."""
    try:
        os.killpg(leader, signum)
    except ProcessLookupError:
        send_signal(leader, signum)


def kill_group_and_descendants(leader: int) -> None:
    """SIGKILL for all of a tree, those that left the group included."""
    below = descendants(leader)
    signal_group(leader, signal.SIGKILL)
    for pid in below:
        send_signal(pid, signal.SIGKILL)


def reap_all() -> list[tuple[int, int]]:
    """Collects children that have ended, as (pid, exit code; negative = signal)."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def kill_all_descendants(rounds: int = 200) -> bool:
    """Ends every process below this one, which must be their subreaper, and collects them.

    Repeats because processes may fork while they are being killed; `rounds` of 10 ms bound it.
    False: some are left, e.g. in a call of the kernel that nothing interrupts.
    """
    import time  # noqa: PLC0415  only the end of a process needs it

    for _ in range(rounds):
        reap_all()
        below = descendants(os.getpid())
        if not below:
            return True
        for pid in below:
            send_signal(pid, signal.SIGKILL)
        time.sleep(0.01)
    return False
