"""Where compiled code is kept from one process to the next: a folder of Muster's own.

numba's files are pickles, so the folder must be ours alone. A folder that cannot be used, or that
breaks later, costs time and never a plan.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import shutil
import stat
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite.binding
import numba
import numpy as np
from numba.core.caching import FunctionCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Names another base folder; by default it is muster/kernels in the user's cache folder.
FOLDER_VARIABLE = "MUSTER_KERNEL_CACHE"
# Versions of the code that are kept, about 3 MB each: several may run on one machine.
_KEPT_VERSIONS = 8
# Beside the kernels, the modules that their code depends on.
SOURCES_BESIDE = ("problem.py",)

# What a damaged file has been seen to raise, besides what the file system does.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    pickle.UnpicklingError,
)

# It carries no types.
_NumbaCache: Any = FunctionCache


class Unusable(Exception):
    """The folder cannot be used; the message says why."""


def base_folder() -> Path:
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path("~/.cache").expanduser()) / "muster" / "kernels"


@cache
def folder() -> Path:
    """The folder for this version of the code, made when it is not there. Raises Unusable."""
    try:
        base = base_folder()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = base.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Unusable(f"{base} can be written by others, who could plant code in it")
        ours = base / version()
        if not ours.exists():
            _prune(base)
        ours.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=ours):
            return ours
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise Unusable(f"compiled code cannot be kept: {error}") from error


def version() -> str:
    """The sources of all kernels and of what goes into them, the compiler, and the processor.

    numba itself looks at the one file of a kernel and its time of change, and would take code for
    unchanged that calls what has changed.
    """
    binding: Any = llvmlite.binding
    versions = (sys.version, numba.__version__, llvmlite.__version__, np.__version__)
    processor = (binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    digest = hashlib.sha256(repr((versions, processor)).encode())
    here = Path(__file__).parent
    for path in (*sorted(here.glob("*.py")), *(here.parent / name for name in SOURCES_BESIDE)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def alone() -> Iterator[None]:
    """Wait while another process holds this: schedulers that start together compile once."""
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prune(base: Path) -> None:
    versions = sorted(base.iterdir(), key=lambda p: p.lstat().st_mtime)
    for old in versions[: 1 - _KEPT_VERSIONS]:
        shutil.rmtree(old, ignore_errors=True)


def why_unusable() -> str | None:
    """None where compiled code is kept."""
    try:
        folder()
    except Unusable as error:
        return str(error)
    return None


def compiled(function: Callable[..., object], **options: object) -> Any:
    """`numba.njit` with these options, kept in `folder` where there is one."""
    decorate: Any = numba.njit
    dispatcher = decorate(**options)(function)
    if why_unusable() is None:
        settings: Any = numba.config
        before = settings.CACHE_DIR
        settings.CACHE_DIR = str(folder())
        try:
            dispatcher._cache = _ForgivingCache(function)
        finally:
            settings.CACHE_DIR = before
    return dispatcher


class _ForgivingCache(_NumbaCache):  # type: ignore[misc]
    """What cannot be read is compiled again, what cannot be written is not kept.

    numba lets no one choose the class; a version that names it otherwise fails the test of this.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except _DAMAGED:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except _DAMAGED:
            # Most often a damaged index; the next process starts with an empty one.
            try:
                self._cache_file.flush()
            except OSError:
                self.disable()
