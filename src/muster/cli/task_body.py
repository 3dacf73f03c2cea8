"""From the command line to the body of a submission. What it means is the gateway's to judge."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muster.cli.failure import EXIT_USAGE, Failure

# The gateway takes 10,000 tasks and 10 MiB; smaller batches let work begin while the rest is
# sent, and leave room for the envelope.
BATCH_TASKS = 1000
BATCH_BYTES = 4 * 1024 * 1024
# A file of tasks is held in memory whole, so that nothing is submitted when a line is wrong.
MAX_FILE_BYTES = 2 * 1024 * 1024 * 1024
_OPERATORS = (("not_exists", 0), ("exists", 0), ("not_in", 2), ("in", 2), ("max", 1))
_SIGNS = ("==", "!=", ">", "<")


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of `muster submit` as they were typed."""

    cpu: str | None = None
    memory: str | None = None
    network: str | None = None
    gpu: str | None = None
    resources: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    priority: int | None = None
    timeout: str | None = None
    start_deadline: str | None = None
    total_deadline: str | None = None
    max_attempts: int | None = None
    on_disconnect: str | None = None
    estimate: str | None = None
    lifetime: str | None = None

    def fields(self) -> dict[str, Any]:
        """Those that were given, as fields of a task. Raises Failure."""
        resources = {"cpu": self.cpu, "memory": self.memory, "network": self.network}
        resources |= {"gpu": self.gpu}
        named = dict(_pair(text, "--resource", "NAME=AMOUNT") for text in self.resources)
        given = {
            "resources": {name: text for name, text in resources.items() if text is not None}
            | named,
            "labels": dict(_pair(text, "--label", "KEY=VALUE") for text in self.labels),
            "constraints": [parse_constraint(text) for text in self.constraints],
        }
        plain = {
            "priority": self.priority,
            "timeout": self.timeout,
            "start_deadline": self.start_deadline,
            "total_deadline": self.total_deadline,
            "max_attempts": self.max_attempts,
            "on_disconnect": self.on_disconnect,
            "estimate": self.estimate,
            "lifetime": self.lifetime,
        }
        return {name: value for name, value in given.items() if value} | {
            name: value for name, value in plain.items() if value is not None
        }


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise Failure(f"{option} {text!r} is not accepted; it reads {form}", EXIT_USAGE)
    return key, value


def parse_constraint(text: str) -> dict[str, Any]:
    """`zone==a`, `zone in a,b`, `gpu exists`, `cores > 4` as a constraint. Raises Failure."""
    words = text.split(None, 2)
    for operator, values in _OPERATORS:
        if len(words) > 1 and words[1] == operator and (len(words) == 3) == bool(values):
            given = [part.strip() for part in words[2].split(",")] if values else []
            return {"key": words[0], "op": operator, "values": given}
    for sign in _SIGNS:
        key, found, value = text.partition(sign)
        if found and key.strip() and value.strip():
            return {"key": key.strip(), "op": sign, "values": [value.strip()]}
    raise Failure(
        f"--constraint {text!r} is not accepted; it reads KEY==VALUE, KEY!=VALUE, KEY>N, KEY<N, "
        "'KEY in A,B', 'KEY not_in A,B', 'KEY exists', 'KEY not_exists' or 'KEY max N'",
        EXIT_USAGE,
    )


def read_text(source: str, what: str) -> str:
    """The text of a file, of standard input for `-`. Raises Failure."""
    try:
        if source == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        path = Path(source).expanduser()
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise Failure(
                f"{what} {source}: {size} bytes are not accepted; at most {MAX_FILE_BYTES}",
                EXIT_USAGE,
            )
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise Failure(f"{what} {source}: {error.strerror}", EXIT_USAGE) from error
    except UnicodeDecodeError as error:
        raise Failure(f"{what} {source}: byte {error.start} is not UTF-8", EXIT_USAGE) from error


def parse_input(text: str | None) -> Any:
    """`--input`: JSON, `@FILE` with JSON, `-` for JSON on standard input. Raises Failure."""
    if text is None:
        return None
    if text == "-" or text.startswith("@"):
        return _json(read_text(text.removeprefix("@"), "--input"), "--input")
    try:
        return _json(text, "--input")
    except Failure as failure:
        if not text[:1].isalpha():
            raise
        quoted = json.dumps(text, ensure_ascii=False)
        raise Failure(
            f"{failure}; a text is written with quotes of its own: --input '{quoted}'", EXIT_USAGE
        ) from failure


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_such_number)
    except ValueError as error:
        raise Failure(f"{where} is not JSON: {error}", EXIT_USAGE) from error
    except RecursionError as error:
        raise Failure(f"{where} is nested too deep", EXIT_USAGE) from error


def _no_such_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def parse_task_lines(text: str, source: str, defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """One task per line; what a line does not say is taken from `defaults`. Raises Failure."""
    tasks = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{source}, line {number},"
        task = _json(line, where)
        if not isinstance(task, dict):
            raise Failure(f"{where} is not an object with a task's fields", EXIT_USAGE)
        task = {**defaults, **task}
        if not isinstance(task.get("skill"), str):
            raise Failure(f"{where} names no skill", EXIT_USAGE)
        tasks.append(task)
    if not tasks:
        raise Failure(f"{source} holds no task", EXIT_USAGE)
    return tasks


def batches(tasks: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    """The tasks in order, in parts that the gateway takes; the same for the same tasks."""
    start = size = 0
    for index, task in enumerate(tasks):
        task_bytes = len(json.dumps(task).encode())
        if index > start and (index - start >= BATCH_TASKS or size + task_bytes > BATCH_BYTES):
            yield tasks[start:index]
            start, size = index, 0
        size += task_bytes
    yield tasks[start:]
