"""What a run may leave behind, and how it goes: processes, mounts and folders, by whose they are.

A run's folder has the pid of its owner in its name. All that a run starts or mounts has to do with
that folder, so it can be found without the run's help.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

_NAME = re.compile(r"muster-(?:chaos|disk)-(\d+)-\w+")
_GONE_WITHIN_S = 20.0
_COMMAND_S = 30.0
_LOOK_S = 0.05
# The signal that this process was told to end by.
_told_by: list[int] = []
# A file's time and a process's are not of the same clock.
_SLACK_S = 2.0


def end_in_order() -> None:
    """From now on the first SIGTERM or SIGINT raises SystemExit in the main thread, so that every
    `with` tidies up; further ones are not heard, and tidying up is not broken off."""

    def told(number: int, _: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        _told_by.append(number)
        leave_if_told()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, told)


def leave_if_told() -> None:
    """For who catches all exceptions: one of them may have taken the place of SystemExit."""
    if _told_by:
        sys.exit(128 + _told_by[0])


@contextmanager
def own_folder(kind: str, within: Path | None = None) -> Iterator[Path]:
    """A folder `muster-<kind>-<pid>-…` for the time inside; then nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix=f"muster-{kind}-{os.getpid()}-", dir=within))
    try:
        yield folder
    finally:
        clear(folder)


def sweep(within: Path | None = None) -> list[Path]:
    """Removes what runs have left whose owners are dead; the folders that are gone now."""
    gone = []
    for folder in sorted(Path(within or tempfile.gettempdir()).glob("muster-*")):
        found = _NAME.fullmatch(folder.name)
        if found is None or folder.is_symlink() or not folder.is_dir():
            continue
        if not _owns(int(found[1]), folder):
            clear(folder)
            gone.append(folder)
    return gone


def clear(folder: Path) -> None:
    """Kills what runs in the folder, unmounts what is mounted there, and deletes it."""
    give_up_s = time.monotonic() + _GONE_WITHIN_S
    while (running := _running_in(folder)) and time.monotonic() < give_up_s:
        for process in running:
            # Kills a stopped process, too.
            with suppress(psutil.Error):
                process.kill()
        time.sleep(_LOOK_S)
    for mount in _mounts_in(folder):
        if not _unmount(mount):
            _unmount("-l", mount)
    shutil.rmtree(folder, ignore_errors=True)


def _owns(pid: int, folder: Path) -> bool:
    """False when the process is dead, or is another one that was given its number later."""
    try:
        return psutil.Process(pid).create_time() <= folder.stat().st_mtime + _SLACK_S
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True


def _running_in(folder: Path) -> list[psutil.Process]:
    """Processes that work in the folder or were told of it, but for this one."""
    inside = f"{folder}{os.sep}"
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with suppress(psutil.Error):
            words = [f"{process.cwd()}{os.sep}", *process.cmdline()]
            if any(word.startswith(inside) for word in words):
                found.append(process)
    return found


def _mounts_in(folder: Path) -> list[str]:
    """The innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    inside = f"{folder}{os.sep}"
    return sorted((point for point in points if point.startswith(inside)), reverse=True)


def _unmount(*words: str) -> bool:
    done = subprocess.run(["umount", *words], capture_output=True, timeout=_COMMAND_S, check=False)
    return done.returncode == 0
