"""A virtual environment for each peer, made when it is first needed and kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

INSTALL_TIMEOUT_S = 900.0
_COMPLETE = ".complete"
_REASON_CHARS = 300


class InstallFailed(Exception):
    """The text says why, in a line."""


def default_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/muster-peers`, or the same under ~/.cache."""
    base = environ.get("XDG_CACHE_HOME", "")
    # The specification: a relative path is to be ignored.
    home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return home / "muster-peers"


def environment_folder(cache: Path, name: str, packages: tuple[str, ...]) -> Path:
    """Another one whenever the packages or this Python change."""
    asked = "\n".join([sys.version, *sorted(packages)])
    return cache / f"{name}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


def python_of(cache: Path, name: str, packages: tuple[str, ...]) -> Path:
    """The Python that has the packages; installs them if need be. Raises InstallFailed."""
    if not packages:
        return Path(sys.executable)
    folder = environment_folder(cache, name, packages)
    python = folder / "bin" / "python"
    if (folder / _COMPLETE).exists() and python.exists():
        return python
    print(f"installing {' '.join(packages)} into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", *packages])
    (folder / _COMPLETE).touch()
    return python


def reason_in(output: str) -> str:
    """The line of pip's output that says why; the last one if none is marked as an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith("ERROR:")]
    return (marked or lines or ["no output"])[-1][:_REASON_CHARS]


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InstallFailed(f"not installed after {INSTALL_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise InstallFailed(str(error)) from None
    if done.returncode != 0:
        raise InstallFailed(reason_in(done.stderr + done.stdout))
