"""What an agent is: the skills and capacity that it offers, and one of its incarnations."""

from __future__ import annotations

from dataclasses import dataclass, field

from muster.domain.ids import DEFAULT_TENANT, AgentId, TenantId
from muster.domain.resources import ResourceVector

MAX_SKILLS = 256
# A day: what a drain waits for longer, it may as well wait for to its end.
MAX_DRAIN_MS = 24 * 3_600_000
MAX_SKILL_SCHEMA_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SkillOffer:
    """A skill as an agent offers it; its identity is `name@schema_hash`.

    Schemas are JSON Schema (draft 2020-12) in UTF-8; empty = anything. `schema_hash` is the
    first 16 hex digits of the SHA-256 over both schemas.
    """

    name: str
    description: str = ""
    input_schema_json: bytes = b""
    output_schema_json: bytes = b""
    schema_hash: str = ""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What an agent says of itself when it registers. `capacity` includes `slots`."""

    id: AgentId
    capacity: ResourceVector
    skills: tuple[SkillOffer, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    tenant: TenantId = DEFAULT_TENANT
    host: str = ""
    pid: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """One incarnation of an agent as the registry holds it.

    `incarnation` grows with each start. `revision` is etcd's at the record's last change.
    """

    spec: AgentSpec
    incarnation: int
    lease_id: int = 0
    registered_at_ms: int = 0
    revision: int = field(default=0, compare=False)
