"""Who may do what: the roles, and the table of the least role for each route."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from muster.domain.errors import InvalidInput


class Role(IntEnum):
    """Each role may do all that the ones below it may."""

    VIEWER = 1
    SUBMITTER = 2
    OPERATOR = 3
    ADMIN = 4

    @property
    def text(self) -> str:
        return self.name.lower()


ROLE_NAMES: Final = tuple(role.text for role in Role)


def parse_role(text: str) -> Role:
    """Raises InvalidInput."""
    if text not in ROLE_NAMES:
        raise InvalidInput("role", text, f"must be one of {', '.join(ROLE_NAMES)}")
    return Role[text.upper()]


# No credential is asked for: only what an orchestrator's probes need.
OPEN: Final = None

# Deny by default: a route that is not here stops the gateway from starting.
ACCESS: Mapping[tuple[str, str], Role | None] = MappingProxyType(
    {
        ("GET", "/healthz"): OPEN,
        ("GET", "/readyz"): OPEN,
        ("GET", "/metrics"): Role.VIEWER,
        ("GET", "/openapi.json"): Role.VIEWER,
        ("POST", "/v1/tasks"): Role.SUBMITTER,
        ("GET", "/v1/tasks"): Role.VIEWER,
        ("GET", "/v1/tasks/{id}"): Role.VIEWER,
        ("GET", "/v1/tasks/{id}/result"): Role.VIEWER,
        ("GET", "/v1/tasks/{id}/logs"): Role.VIEWER,
        ("GET", "/v1/tasks/{id}/explain"): Role.VIEWER,
        ("GET", "/v1/tasks/{id}/events"): Role.VIEWER,
        ("POST", "/v1/tasks/{id}/cancel"): Role.SUBMITTER,
        # Reads, although the ids travel in a body.
        ("POST", "/v1/results"): Role.VIEWER,
        # Places nothing, and takes a processor for a while.
        ("POST", "/v1/plans"): Role.SUBMITTER,
        ("GET", "/v1/events"): Role.VIEWER,
        ("GET", "/v1/cluster"): Role.VIEWER,
        ("POST", "/v1/cluster/accept-store"): Role.ADMIN,
        ("GET", "/v1/agents"): Role.VIEWER,
        ("GET", "/v1/agents/{id}"): Role.VIEWER,
        ("GET", "/v1/recoveries"): Role.VIEWER,
        ("GET", "/v1/recoveries/{id}"): Role.VIEWER,
        ("POST", "/v1/agents/{id}/cordon"): Role.OPERATOR,
        ("POST", "/v1/agents/{id}/uncordon"): Role.OPERATOR,
        ("POST", "/v1/agents/{id}/drain"): Role.OPERATOR,
        ("POST", "/v1/agents/{id}/restart"): Role.OPERATOR,
        ("GET", "/v1/alerts"): Role.VIEWER,
        ("GET", "/v1/silences"): Role.VIEWER,
        ("POST", "/v1/silences"): Role.OPERATOR,
        ("DELETE", "/v1/silences/{id}"): Role.OPERATOR,
        ("GET", "/v1/kv"): Role.VIEWER,
        ("GET", "/v1/kv/{key}"): Role.VIEWER,
        ("PUT", "/v1/kv/{key}"): Role.SUBMITTER,
        ("DELETE", "/v1/kv/{key}"): Role.SUBMITTER,
        ("POST", "/v1/blobs"): Role.SUBMITTER,
        ("GET", "/v1/blobs/{sha256}"): Role.VIEWER,
        ("DELETE", "/v1/blobs/{sha256}"): Role.SUBMITTER,
        ("GET", "/v1/policy"): Role.VIEWER,
        ("PUT", "/v1/policy"): Role.ADMIN,
        ("GET", "/v1/keys"): Role.ADMIN,
        ("POST", "/v1/keys"): Role.ADMIN,
        ("DELETE", "/v1/keys/{id}"): Role.ADMIN,
    }
)
