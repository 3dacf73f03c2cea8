"""What a storage service is told at its start, from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muster.domain.errors import ConfigurationError
from muster.rpc.settings import address, flag, number
from muster_storage.blobs import MAX_BLOB_BYTES
from muster_storage.redis_link import RedisAddress
from muster_storage.redis_store import EVENTS_KEPT

DAY_S = 24 * 3600
# Each takes some 3.4 KiB of Redis' memory, and Redis reads as many in 13 s when it starts.
RETAIN_TASKS = 100_000
# Long enough for a slow disk's fsync, short enough that callers hear of a dead Redis in time.
REDIS_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Config:
    """See services/storage/README.md for what each variable means."""

    listen: str
    metrics_listen: str
    secret: str
    redis_url: str
    blob_dir: Path
    retention_s: int = DAY_S
    retain_tasks: int = RETAIN_TASKS
    blob_grace_s: int = 3600
    blob_max_bytes: int = MAX_BLOB_BYTES
    events_kept: int = EVENTS_KEPT
    redis_timeout_s: float = REDIS_TIMEOUT_S
    sweep_interval_s: float = 10.0
    allow_weak_redis: bool = False

    @property
    def request_retention_s(self) -> int:
        """Of idempotency records: never shorter than what callers are promised, a day."""
        return max(DAY_S, self.retention_s)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Raises ConfigurationError naming key, value and what is accepted."""
        redis_url = environ.get("MUSTER_REDIS_URL", "redis://127.0.0.1:6379/0")
        RedisAddress.parse(redis_url)
        state_dir = environ.get("MUSTER_STATE_DIR", "")
        blob_dir = environ.get("MUSTER_BLOB_DIR") or (state_dir and f"{state_dir}/blobs")
        if not blob_dir:
            raise ConfigurationError(
                "MUSTER_BLOB_DIR", "", "a folder that all storage services share"
            )
        return cls(
            listen=address(environ, "MUSTER_LISTEN", "127.0.0.1:7104"),
            metrics_listen=address(environ, "MUSTER_METRICS_LISTEN", "127.0.0.1:0"),
            secret=environ.get("MUSTER_JOIN_SECRET", ""),
            redis_url=redis_url,
            blob_dir=Path(blob_dir).absolute(),
            retention_s=int(number(environ, "MUSTER_RETENTION_S", DAY_S, 1, 10 * 365 * DAY_S)),
            retain_tasks=int(
                number(environ, "MUSTER_RETAIN_TASKS", RETAIN_TASKS, 1_000, 100_000_000)
            ),
            blob_grace_s=int(number(environ, "MUSTER_BLOB_GRACE_S", 3600, 1, 365 * DAY_S)),
            blob_max_bytes=int(
                number(environ, "MUSTER_BLOB_MAX_BYTES", MAX_BLOB_BYTES, 1, 1024**4)
            ),
            events_kept=int(number(environ, "MUSTER_EVENTS_KEPT", EVENTS_KEPT, 1_000, 100_000_000)),
            redis_timeout_s=number(environ, "MUSTER_REDIS_TIMEOUT_S", REDIS_TIMEOUT_S, 0.1, 60),
            sweep_interval_s=number(environ, "MUSTER_SWEEP_INTERVAL_S", 10, 0.1, 3600),
            allow_weak_redis=flag(environ, "MUSTER_ALLOW_WEAK_REDIS"),
        )
