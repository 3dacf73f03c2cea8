"""The scheduler's configuration, read once from its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muster.domain.errors import ConfigurationError, InvalidInput
from muster.rpc.settings import address, addresses, flag
from muster_scheduler.core.health import QuarantineSettings
from muster_scheduler.placement import strategy
from muster_scheduler.placement.plan import DEFAULT_STRATEGY

DEFAULT_LISTEN = "127.0.0.1:7701"
DEFAULT_METRICS_LISTEN = "127.0.0.1:7711"
DEFAULT_LEARN_EVERY_S = 60
MAX_LEARN_EVERY_S = 86_400
MAX_QUARANTINE_PERCENT = 50
MAX_PAROLE_AFTER_S = 3_600


@dataclass(frozen=True, slots=True)
class Config:
    """Addresses are host:port. `advertise` is what agents and gateways are told to dial.

    `learn_every_s` is the least time between two trainings; 0 = nothing is learned.
    `etcd_embedded`: its version does not matter, because `muster up` owns it.
    """

    listen: str
    metrics_listen: str
    advertise: str
    join_secret: str
    etcd: tuple[str, ...]
    storage: tuple[str, ...]
    registry: tuple[str, ...]
    monitors: tuple[str, ...]
    strategy: str = DEFAULT_STRATEGY
    leader_ttl_s: int = 3
    learn_every_s: int = DEFAULT_LEARN_EVERY_S
    quarantines: QuarantineSettings = QuarantineSettings()  # noqa: RUF009  frozen
    etcd_embedded: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Raises ConfigurationError naming key, value and what is accepted."""
        listen = address(environ, "MUSTER_LISTEN", DEFAULT_LISTEN)
        chosen = environ.get("MUSTER_STRATEGY", DEFAULT_STRATEGY)
        try:
            strategy.get(chosen)
        except InvalidInput as error:
            raise ConfigurationError("MUSTER_STRATEGY", chosen, error.limit) from error
        ttl = environ.get("MUSTER_LEADER_TTL_S", "3")
        if not (ttl.isascii() and ttl.isdigit()) or not 2 <= int(ttl) <= 60:
            raise ConfigurationError("MUSTER_LEADER_TTL_S", ttl, "whole seconds, 2 to 60")
        learn = environ.get("MUSTER_LEARN_EVERY_S", str(DEFAULT_LEARN_EVERY_S))
        if not (learn.isascii() and learn.isdigit()) or int(learn) > MAX_LEARN_EVERY_S:
            limit = f"whole seconds, 0 to {MAX_LEARN_EVERY_S}"
            raise ConfigurationError("MUSTER_LEARN_EVERY_S", learn, limit)
        return cls(
            listen=listen,
            metrics_listen=address(environ, "MUSTER_METRICS_LISTEN", DEFAULT_METRICS_LISTEN),
            advertise=address(environ, "MUSTER_ADVERTISE", listen),
            join_secret=_needed(environ, "MUSTER_JOIN_SECRET", "the cluster's join secret"),
            etcd=addresses(environ, "MUSTER_ETCD_ENDPOINTS"),
            storage=addresses(environ, "MUSTER_STORAGE"),
            registry=addresses(environ, "MUSTER_REGISTRY"),
            monitors=addresses(environ, "MUSTER_MONITORS", optional=True),
            strategy=chosen,
            leader_ttl_s=int(ttl),
            learn_every_s=int(learn),
            quarantines=_quarantines(environ),
            etcd_embedded=flag(environ, "MUSTER_ETCD_EMBEDDED"),
        )


def _quarantines(environ: Mapping[str, str]) -> QuarantineSettings:
    percent = environ.get("MUSTER_QUARANTINE_PERCENT", "20")
    if not (percent.isascii() and percent.isdigit()) or int(percent) > MAX_QUARANTINE_PERCENT:
        limit = f"whole percents of the agents, 0 to {MAX_QUARANTINE_PERCENT}"
        raise ConfigurationError("MUSTER_QUARANTINE_PERCENT", percent, limit)
    parole = environ.get("MUSTER_PAROLE_AFTER_S", "60")
    if not (parole.isascii() and parole.isdigit()) or not 1 <= int(parole) <= MAX_PAROLE_AFTER_S:
        limit = f"whole seconds, 1 to {MAX_PAROLE_AFTER_S}"
        raise ConfigurationError("MUSTER_PAROLE_AFTER_S", parole, limit)
    return QuarantineSettings(int(percent) / 100, int(parole) * 1_000)


def _needed(environ: Mapping[str, str], key: str, what: str) -> str:
    value = environ.get(key, "")
    if not value:
        raise ConfigurationError(key, value, f"{what} is needed")
    return value
