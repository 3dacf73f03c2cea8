"""What a scheduler is told at its start."""

from __future__ import annotations

import pytest

from muster.domain.errors import ConfigurationError
from muster_scheduler.config import Config

NEEDED = {
    "MUSTER_JOIN_SECRET": "0123456789abcdef",
    "MUSTER_ETCD_ENDPOINTS": "127.0.0.1:2379",
    "MUSTER_STORAGE": "127.0.0.1:1, 127.0.0.1:2,",
    "MUSTER_REGISTRY": "127.0.0.1:3",
}


def test_defaults() -> None:
    config = Config.from_env(NEEDED)
    assert (config.listen, config.advertise) == ("127.0.0.1:7701", "127.0.0.1:7701")
    assert config.storage == ("127.0.0.1:1", "127.0.0.1:2")
    assert (config.monitors, config.strategy, config.leader_ttl_s) == ((), "worst_fit", 3)


def test_everything_given() -> None:
    config = Config.from_env(
        {
            **NEEDED,
            "MUSTER_LISTEN": "127.0.0.1:0",
            "MUSTER_ADVERTISE": "host.example:7",
            "MUSTER_MONITORS": "127.0.0.1:4",
            "MUSTER_STRATEGY": "greedy",
            "MUSTER_LEADER_TTL_S": "5",
            "MUSTER_LEARN_EVERY_S": "0",
        }
    )
    assert (config.listen, config.advertise) == ("127.0.0.1:0", "host.example:7")
    assert (config.monitors, config.strategy) == (("127.0.0.1:4",), "greedy")
    assert (config.leader_ttl_s, config.learn_every_s) == (5, 0)


@pytest.mark.parametrize("key", sorted(NEEDED))
def test_what_is_needed(key: str) -> None:
    with pytest.raises(ConfigurationError, match=key):
        Config.from_env({k: v for k, v in NEEDED.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("MUSTER_STRATEGY", "magic", "worst_fit"),
        ("MUSTER_LEADER_TTL_S", "1", "2 to 60"),
        ("MUSTER_LEADER_TTL_S", "61", "2 to 60"),
        ("MUSTER_LEADER_TTL_S", "3.5", "whole seconds"),
        ("MUSTER_LEADER_TTL_S", "²", "whole seconds"),
        ("MUSTER_LEARN_EVERY_S", "86401", "0 to 86400"),
        ("MUSTER_LEARN_EVERY_S", "-1", "0 to 86400"),
        ("MUSTER_QUARANTINE_PERCENT", "51", "0 to 50"),
        ("MUSTER_QUARANTINE_PERCENT", "a fifth", "whole percents"),
        ("MUSTER_PAROLE_AFTER_S", "0", "1 to 3600"),
        ("MUSTER_LEARN_EVERY_S", "often", "whole seconds"),
        ("MUSTER_STORAGE", "127.0.0.1", "host:port"),
        ("MUSTER_STORAGE", "127.0.0.1:0", "1 to 65535"),
        ("MUSTER_REGISTRY", ":7", "host:port"),
        ("MUSTER_MONITORS", "h:65536", "65535"),
        ("MUSTER_ETCD_ENDPOINTS", "h:²", "host:port"),
        ("MUSTER_LISTEN", "7701", "host:port"),
        ("MUSTER_METRICS_LISTEN", "h:x", "host:port"),
        ("MUSTER_ADVERTISE", "h", "host:port"),
    ],
)
def test_what_is_not_accepted_names_key_value_and_range(
    key: str, value: str, accepted: str
) -> None:
    with pytest.raises(ConfigurationError) as failed:
        Config.from_env({**NEEDED, key: value})
    assert failed.value.key == key
    assert failed.value.value == value
    assert accepted in failed.value.accepted
