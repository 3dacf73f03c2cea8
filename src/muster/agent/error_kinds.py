"""What `Outcome.error_kind` may say when an attempt fails on an agent."""

from __future__ import annotations

from typing import Final

# The skill raised; the error holds type, message and the end of the traceback.
EXCEPTION: Final = "exception"
# The process that ran the attempt ended by itself, or a command with a non-zero code.
EXIT: Final = "exit"
# The process that ran the attempt was killed by a signal that Muster did not send.
SIGNAL: Final = "signal"
# The task's input breaks the skill's schema.
INPUT_SCHEMA: Final = "input_schema"
# The skill says that trying again would not help.
PERMANENT: Final = "permanent"
# The skill returned something that JSON cannot hold.
NOT_JSON: Final = "not_json"
# The result is larger than the agent's limit.
OUTPUT_TOO_LARGE: Final = "output_too_large"
# The result could not be stored in time.
RESULT_STORE: Final = "result_store"
# The start-to-close timeout passed.
TIMEOUT: Final = "timeout"
# `command` names a program that the agent does not have, or may not run.
NO_PROGRAM: Final = "no_program"
NOT_ALLOWED: Final = "not_allowed"
# With RETURNED: why the agent gave the attempt back.
DRAINED: Final = "drained"
NO_SLOT: Final = "no_slot"
NO_DEVICE: Final = "no_device"
UNKNOWN_SKILL: Final = "unknown_skill"
DISCONNECTED: Final = "disconnected"
# The attempt shared a process with another one that broke it.
RUNNER_LOST: Final = "runner_lost"

# The same input would fail the same way on every agent: trying again only costs.
NON_RETRYABLE_ERROR_KINDS: Final = frozenset({INPUT_SCHEMA, PERMANENT, NOT_JSON, OUTPUT_TOO_LARGE})
