"""What the oracle compares: the client's journal, the tasks' marks, records and events."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of every task of a run.
LABEL = "oracle"
# Holds the key of a submission whose sender may never hear of it.
REQUEST = "request"
SUCCEEDED = "SUCCEEDED"
ENDED_STATES = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "DEAD"})


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A submission that was answered with 202. Times are CLOCK_MONOTONIC seconds.

    `expected`: states that its tasks may end in. `stop`: its tasks must never overlap.
    """

    key: str
    ids: tuple[str, ...]
    sent_s: float
    acked_s: float
    expected: tuple[str, ...] = (SUCCEEDED,)
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A line of the side file: an execution has begun (phase `begin`), is at work (`tick`), or
    has done all its work (`end`)."""

    task: str
    attempt: int
    phase: str
    at_s: float
    pid: int
    token: str


@dataclass(frozen=True, slots=True)
class Record:
    """A task as the cluster shows it. `request`: the key of its submission, where it is labelled
    with that."""

    id: str
    state: str
    attempt: int
    failures: int = 0
    agent_deaths: int = 0
    agent: str = ""
    result: Any = None
    request: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """An event of the cluster's log, in its order. `at_s` is CLOCK_MONOTONIC of its writer.

    Of a task (`task` set), of an agent (`agent_state` set), of the leader, or an alarm of the
    cluster (`why` is empty when it is over). `recovery`: what was decided about an agent that is
    down, as its id, action and outcome.
    """

    at_s: float
    task: str = ""
    state: str = ""
    attempt: int = 0
    agent: str = ""
    agent_state: str = ""
    incarnation: int = 0
    term: int = 0
    why: str = ""
    leader: bool = False
    alarm: bool = False
    recovery: str = ""


class Journal:
    """An append-only file of acknowledged submissions, kept outside the cluster."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._acknowledged: list[Acknowledged] = []

    def note(self, entry: Acknowledged) -> None:
        """Safe from several threads."""
        line = json.dumps([entry.key, entry.ids, entry.sent_s, entry.acked_s, entry.expected])
        with self._lock:
            with self.path.open("a") as file:
                file.write(line + "\n")
            self._acknowledged.append(entry)

    def entries(self) -> list[Acknowledged]:
        with self._lock:
            return list(self._acknowledged)

    def ids(self) -> list[str]:
        """Of all acknowledged tasks, each once, in the order of their acknowledgement."""
        return list(dict.fromkeys(i for entry in self.entries() for i in entry.ids))


class SideFile:
    """The marks that executions leave. Reading goes on where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marks: list[Mark] = []
        self._open: dict[tuple[str, int], Mark] = {}
        self._first_end_s: dict[str, float] = {}
        self._ended = 0
        self._offset = 0
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))

    def read(self) -> Sequence[Mark]:
        """All marks so far."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for mark in _parsed(whole.decode().splitlines()):
            self._marks.append(mark)
            if mark.phase == "begin":
                self._open[mark.task, mark.attempt] = mark
            elif mark.phase == "end":
                self._open.pop((mark.task, mark.attempt), None)
                self._first_end_s.setdefault(mark.task, mark.at_s)
                self._ended += 1
        return self._marks

    def ended(self) -> int:
        """How many executions have done all their work."""
        self.read()
        return self._ended

    def first_end_s(self, task: str) -> float | None:
        """When the task was done for the first time, as far as was read."""
        return self._first_end_s.get(task)

    def running(self) -> dict[tuple[str, int], Mark]:
        """Executions that have begun and not ended, or died, by task and attempt."""
        self.read()
        return dict(self._open)


def _parsed(lines: Sequence[str]) -> Iterator[Mark]:
    for line in lines:
        task, attempt, phase, at_s, pid, token = line.split()
        yield Mark(task, int(attempt), phase, float(at_s), int(pid), token)
