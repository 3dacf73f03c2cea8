"""Runs that are kept in a folder, so that a long campaign can be done in parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.oracle.catalogue import FAULTS
from benchmarks.oracle.scene import Run

_ROOT = Path(__file__).resolve().parents[2]
_CLUSTER = ("src", "services")
# What a run of a fault depends on, and a simulated schedule.
FAULT_CODE = (*_CLUSTER, "benchmarks/oracle")
SCHEDULE_CODE = (*_CLUSTER, "tests/scenarios")
_SUFFIXES = frozenset({".py", ".lua"})
_SCHEDULES = "schedules.json"


def fingerprint(folders: Sequence[str]) -> str:
    """Of all code that a run depends on: runs of other code are not runs of this one."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in _SUFFIXES:
                digest.update(f"{path.relative_to(_ROOT)}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Results:
    """One file for each fault, one line for each seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, number: str) -> list[Run]:
        """In the order of their seeds."""
        path = self._path(number)
        if not path.exists():
            return []
        return [Run(**json.loads(line)) for line in path.read_text().splitlines()]

    def all(self) -> dict[str, list[Run]]:
        return {number: runs for number in FAULTS if (runs := self.of(number))}

    def keep(self, run: Run) -> None:
        """In place of an earlier run of the same fault with the same seed, and of a word that the
        fault cannot be made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        runs = [old for old in self.of(run.fault) if old.seed != run.seed and not old.skipped]
        runs = sorted([*runs, run], key=lambda kept: kept.seed)
        lines = (json.dumps(kept.as_dict()) for kept in runs)
        self._path(run.fault).write_text("\n".join(lines) + "\n")

    def held(self, number: str, code: str) -> set[int]:
        """The seeds with which all was well, by this code."""
        runs = self.of(number)
        return {run.seed for run in runs if run.clean and not run.skipped and run.code == code}

    def keep_schedules(self, said: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _SCHEDULES).write_text(json.dumps(said) + "\n")

    def schedules(self) -> dict[str, Any]:
        """Of the last simulation; empty when there was none."""
        path = self.folder / _SCHEDULES
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def _path(self, number: str) -> Path:
        return self.folder / f"fault-{number}.jsonl"
