"""A registry's configuration fails by naming key, value and what is accepted."""

from __future__ import annotations

import pytest

from muster.domain.errors import ConfigurationError
from muster_registry.config import Config

SOUND = {
    "MUSTER_ETCD_ENDPOINTS": "127.0.0.1:1,127.0.0.1:2",
    "MUSTER_STORAGE": "127.0.0.1:3",
    "MUSTER_JOIN_SECRET": "s" * 16,
}


def test_defaults_and_lists() -> None:
    config = Config.from_env(SOUND)
    assert config.etcd == ("127.0.0.1:1", "127.0.0.1:2")
    assert config.monitors == ()
    assert config.policy.interval_ms(1) == 3000
    assert Config.from_env({**SOUND, "MUSTER_MONITORS": "m:1"}).monitors == ("m:1",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MUSTER_ETCD_ENDPOINTS", ""),
        ("MUSTER_STORAGE", "nowhere"),
        ("MUSTER_MONITORS", "m:0"),
        ("MUSTER_LISTEN", "127.0.0.1:70000"),
        ("MUSTER_HEARTBEAT_INTERVAL_MS", "100"),
        ("MUSTER_HEARTBEAT_INTERVAL_MS", "soon"),
        ("MUSTER_REGISTRY_MAX_RENEWALS_PER_S", "nan"),
    ],
)
def test_bad_values_are_named(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Config.from_env({**SOUND, key: value})
    assert (refused.value.key, refused.value.value) == (key, value)
