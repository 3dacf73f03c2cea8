"""What a runner, of either kind, says of an attempt: result, failure, partial outputs."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from muster.agent import error_kinds, wire
from muster.agent.outputs import NotJson, describe_exception, encode_output
from muster.agent.schema import BoundSkill
from muster.domain.task import MAX_INLINE_RESULT_BYTES
from muster.skill import InputRejected, PermanentFailure

_PROGRESS_BURST: Final = 50
_PROGRESS_PER_S: Final = 20


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What all runners of an agent share, but for the devices that one is given."""

    skills: Mapping[str, BoundSkill]
    max_result_bytes: int
    devices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def results_folder(runner_folder: Path) -> Path:
    """Where large results wait for their upload: beside the runner, which may go before."""
    return runner_folder.parent / "results"


def failure_of(slot: int, error: BaseException) -> wire.RunFailed:
    """The message for a raised exception."""
    if isinstance(error, InputRejected):
        return wire.RunFailed(slot, error_kinds.INPUT_SCHEMA, str(error))
    if isinstance(error, PermanentFailure):
        return wire.RunFailed(slot, error_kinds.PERMANENT, str(error))
    return wire.RunFailed(slot, error_kinds.EXCEPTION, describe_exception(error))


def answer_for(slot: int, value: Any, settings: RunnerSettings, folder: Path) -> Any:
    """The message for a returned value: its JSON, a file with it, or why there is none."""
    try:
        output = encode_output(value)
    except NotJson as error:
        return wire.RunFailed(slot, error_kinds.NOT_JSON, str(error))
    except Exception as error:  # noqa: BLE001  a model's own serialiser may raise anything
        return wire.RunFailed(slot, error_kinds.NOT_JSON, f"the result is not JSON: {error!r}")
    size = len(output)
    if size > settings.max_result_bytes:
        return wire.RunFailed(
            slot,
            error_kinds.OUTPUT_TOO_LARGE,
            f"the result has {size} bytes; this agent takes at most {settings.max_result_bytes}",
        )
    if size <= MAX_INLINE_RESULT_BYTES:
        return wire.RunDone(slot, output, "", size)
    with tempfile.NamedTemporaryFile(
        dir=results_folder(folder), prefix="result-", delete=False
    ) as out:
        out.write(output)
    return wire.RunDone(slot, b"", out.name, size)


def partial_of(slot: int, index: int, value: Any) -> wire.PartialOutput | None:
    """A yield that cannot be shown on the way is left to the result."""
    try:
        output = encode_output(value)
    except NotJson:
        return None
    if len(output) > MAX_INLINE_RESULT_BYTES:
        return None
    return wire.PartialOutput(slot, index, output)


class Throttle:
    """Lets the first words through, and then so many a second: a loop may report each step."""

    def __init__(self) -> None:
        self._tokens, self._at_s = float(_PROGRESS_BURST), 0.0

    def passes(self) -> bool:
        """Whether one more may go now."""
        now_s = time.monotonic()
        self._tokens = min(_PROGRESS_BURST, self._tokens + (now_s - self._at_s) * _PROGRESS_PER_S)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def in_main_thread() -> bool:
    """Whether the caller is no thread that a skill has started."""
    return threading.current_thread() is threading.main_thread()
