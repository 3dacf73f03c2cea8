"""Where Muster keeps what in etcd. Nothing irreplaceable lives here, and nothing per task."""

from __future__ import annotations

from typing import Final

# One key per registered agent, bound to the agent's lease.
AGENTS_PREFIX: Final = "muster/agents/"

# The leading scheduler's advertised address (host:port), bound to its lease.
LEADER_KEY: Final = "muster/leader"

# How far the store had come when a leader last looked; on no lease.
STORE_KEY: Final = "muster/store"


def agent_key(agent_id: str) -> str:
    """The key of one agent's registration; the id's alphabet has no slash."""
    return AGENTS_PREFIX + agent_id
