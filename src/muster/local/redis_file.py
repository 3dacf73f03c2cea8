"""Cuts zeros off the end of Redis' append-only file, which a power cut can leave there.

A file system may remember that a file had grown and not what was written into it; what was never
written reads as zeros. Redis bears a file that ends in the midst of a command, and refuses one
that ends in zeros. Nothing that was synced lies in or behind them: no command ends with a zero.
Any other damage is left for a person.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# What Redis says of a file that it cannot read, in all versions since 2.4.
COMPLAINT = "Bad file format reading the append only file"
_BLOCK_BYTES = 1 << 20


def mend(data_dir: Path, last_words: str, stamp: str) -> str:
    """What was done, as a sentence; empty when nothing was.

    `data_dir` is Redis' `dir`, `last_words` the last line that it wrote, `stamp` part of the name
    under which the file is kept as it was. Redis must not run. Raises OSError.
    """
    if COMPLAINT not in last_words:
        return ""
    path = _newest(data_dir)
    if path is None:
        return ""
    size = path.stat().st_size
    sound = _size_without_zeros(path)
    if sound == size:
        return (
            f"{path} is damaged, not only at its end: restore it, or see what would be lost with "
            "`redis-check-aof` before its `--fix` cuts it"
        )
    kept = path.with_name(f"{path.name}.{stamp}")
    shutil.copy2(path, kept)
    with path.open("r+b") as file:
        file.truncate(sound)
        os.fsync(file.fileno())
    return (
        f"{path} ended in {size - sound} zeros, as after a power cut: they are cut off, "
        f"what it was is kept as {kept.name}"
    )


def _newest(data_dir: Path) -> Path | None:
    """The file that is appended to: of Redis 7 and newer in a folder, with a number that grows."""
    single = data_dir / "appendonly.aof"
    parts = sorted(
        (data_dir / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime_ns
    )
    return parts[-1] if parts else single if single.exists() else None


def _size_without_zeros(path: Path) -> int:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            left = file.read(end - start).rstrip(b"\0")
            if left:
                return start + len(left)
            end = start
    return 0
