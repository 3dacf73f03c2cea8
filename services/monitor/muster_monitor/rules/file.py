"""The rules file on disk: read at the start, and again when it has changed."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

import structlog

from muster_monitor.rules.located import MAX_RULES_BYTES, Mistake
from muster_monitor.rules.reading import read_rules
from muster_monitor.rules.schema import RuleSet

_LOG = structlog.get_logger("muster.monitor")

POLL_S = 1.0
_NAMED_MISTAKES = 3


def read_file(path: Path) -> tuple[RuleSet, list[Mistake]]:
    """The rules of a file. A file that cannot be opened is a mistake as well."""
    try:
        # Not to wait at a pipe, and not to read more than shows that it is too large.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return RuleSet(), [Mistake(0, "file", str(path), "a regular file")]
            encoded = file.read(MAX_RULES_BYTES + 1)
    except OSError as error:
        said = error.strerror or type(error).__name__
        return RuleSet(), [Mistake(0, "file", str(path), f"a file that can be read ({said})")]
    return read_rules(encoded)


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """What differs when the file is another one or has changed; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class RulesFile:
    """Polls; `take` is given new sound rules, `refuse` the mistakes of others, [] when mended."""

    def __init__(
        self,
        path: Path,
        take: Callable[[RuleSet], None],
        refuse: Callable[[list[Mistake]], None],
    ) -> None:
        self._path = path
        self._take, self._refuse = take, refuse
        self._stamp: tuple[int, int, int] | None = None
        self._read_once = False

    async def look(self) -> bool:
        """Reads the file when it has changed since the last time. True when it was read."""
        stamp = await asyncio.to_thread(stamp_of, self._path)
        if stamp == self._stamp and self._read_once:
            return False
        # Taken before reading: what is written meanwhile is read at the next look.
        self._stamp, self._read_once = stamp, True
        rules, mistakes = await asyncio.to_thread(read_file, self._path)
        if mistakes:
            said = "; ".join(str(mistake) for mistake in mistakes[:_NAMED_MISTAKES])
            _LOG.error(
                "the rules file is broken, the rules before stay in force",
                file=str(self._path),
                mistakes=len(mistakes),
                first=said,
            )
        else:
            self._take(rules)
            _LOG.info(
                "rules are read",
                file=str(self._path),
                rules=len(rules.figures),
                patterns=len(rules.logs.patterns),
            )
        self._refuse(mistakes)
        return True

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_S)
