"""A wall clock that can be set, for Muster's own processes alone.

`time.time()` and `time.time_ns()`, as called by modules of Muster, go wrong by what lies in a
file; that is where Muster reads the time of day. gRPC, Redis and etcd keep the true time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

_FOLDER = Path(__file__).with_name("clock_setting")


class WallClock:
    """One for each of the named parts; give `environ(name)` to its process."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder, self.names = folder, tuple(names)
        folder.mkdir(parents=True, exist_ok=True)
        self.set_off(0.0)

    @staticmethod
    def environ(folder: str, name: str) -> dict[str, str]:
        return {"PYTHONPATH": str(_FOLDER), "ORACLE_CLOCK": str(Path(folder) / name)}

    def set_off(self, seconds: float, *names: str) -> None:
        """From now on the clocks of these parts, or of all, are wrong by so much; negative: late.

        Written in place: the parts have the files mapped into their memory.
        """
        for name in names or self.names:
            path = self.folder / name
            path.touch()
            with path.open("r+b") as file:
                file.write(struct.pack("q", round(seconds * 1e9)))
