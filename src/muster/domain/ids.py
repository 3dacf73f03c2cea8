"""Identifiers: time-sortable task ids that a request fixes whole, and the names of agents.

A task id is 26 characters of Crockford's base 32, lower case, 130 bits:

    10 characters  unix milliseconds when the request first came (so ids sort by age)
    12 characters  60 bits of the request's digest
     4 characters  the task's index within its request (20 bits)

All ids of a request follow from (tenant, key, first time): a repeated request gets the same
ids, whichever gateway answers it. Time and randomness are passed in.
"""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from muster.domain.errors import InvalidInput

TaskId = NewType("TaskId", str)
AgentId = NewType("AgentId", str)
TenantId = NewType("TenantId", str)

DEFAULT_TENANT = TenantId("default")

# 10,000 tasks fill a batch; the index has room for a hundred times that.
MAX_INDEX = (1 << 20) - 1
# What all task ids of one request begin with.
PREFIX_CHARS = 22
# Of children of one attempt; see `child_key`.
MAX_KEY_CHARS = 200

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_TASK_ID = re.compile(f"[0-7][{_ALPHABET}]{{25}}")
_AGENT_ID = re.compile(r"[a-z0-9][-a-z0-9.]{0,62}")
_TENANT_ID = re.compile(r"[a-z0-9][-a-z0-9]{0,31}")
_SKILL = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_KEY = re.compile(r"[\x21-\x7e]{1,200}")


def _base32(number: int, chars: int) -> str:
    return "".join([_ALPHABET[number >> shift & 31] for shift in range(5 * chars - 5, -1, -5)])


def request_prefix(tenant: TenantId, key: str, first_ms: int) -> str:
    """The 22 characters that all task ids of one request share.

    `first_ms` is the unix time in milliseconds at which the request was first seen.
    """
    digest = hashlib.sha256(f"{tenant}\x00{key}\x00{first_ms}".encode()).digest()
    return _base32(first_ms & ((1 << 48) - 1), 10) + _base32(int.from_bytes(digest[:8]) >> 4, 12)


def task_id(prefix: str, index: int) -> TaskId:
    """Id of the `index`-th task (0-based, at most MAX_INDEX) of the request with this prefix."""
    assert 0 <= index <= MAX_INDEX
    return TaskId(prefix + _base32(index, 4))


def task_time_ms(ident: TaskId) -> int:
    """Unix milliseconds at which the task's request first came."""
    value = 0
    for char in ident[:10]:
        value = value << 5 | _ALPHABET.index(char)
    return value


def child_key(parent: TaskId, call_index: int) -> str:
    """Idempotency key of a parent's `call_index`-th child: a retried parent finds its children."""
    return f"child:{parent}:{call_index}"


def parse_task_id(text: str) -> TaskId:
    """`text` as a task id; raises InvalidInput."""
    if not _TASK_ID.fullmatch(text):
        raise InvalidInput("id", text, "a task id has 26 characters of 0-9 a-z without i l o u")
    return TaskId(text)


def parse_agent_id(text: str, field: str = "agent") -> AgentId:
    """`text` as an agent id; raises InvalidInput."""
    if not _AGENT_ID.fullmatch(text):
        raise InvalidInput(
            field, text, "an agent id is 1 to 63 of a-z 0-9 - . and begins with a letter or digit"
        )
    return AgentId(text)


def parse_tenant_id(text: str) -> TenantId:
    """`text` as a tenant's name; raises InvalidInput."""
    if not _TENANT_ID.fullmatch(text):
        raise InvalidInput("tenant", text, "a tenant is 1 to 32 of a-z 0-9 -")
    return TenantId(text)


def parse_skill_name(text: str, field: str = "skill") -> str:
    """`text` as a skill's name; raises InvalidInput."""
    if not _SKILL.fullmatch(text):
        raise InvalidInput(
            field, text, "a skill is 1 to 63 of a-z 0-9 _ . - and begins with a letter"
        )
    return text


def parse_idempotency_key(text: str) -> str:
    """`text` as an Idempotency-Key; raises InvalidInput."""
    if not _KEY.fullmatch(text):
        raise InvalidInput(
            "Idempotency-Key", text, f"1 to {MAX_KEY_CHARS} visible ASCII characters"
        )
    return text
