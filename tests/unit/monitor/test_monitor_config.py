"""A monitor's configuration fails by naming key, value and what is accepted."""

from __future__ import annotations

import pytest

from muster.domain.errors import ConfigurationError
from muster_monitor.config import Config

SOUND = {
    "MUSTER_STORAGE": "127.0.0.1:1, 127.0.0.1:2",
    "MUSTER_REGISTRY": "127.0.0.1:3",
    "MUSTER_JOIN_SECRET": "s" * 16,
}


def test_defaults_and_lists() -> None:
    config = Config.from_env(SOUND)
    assert config.storage == ("127.0.0.1:1", "127.0.0.1:2")
    assert (config.detector.threshold, config.detector.window) == (8.0, 1000)
    assert Config.from_env({**SOUND, "MUSTER_PHI_THRESHOLD": "12"}).detector.threshold == 12.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MUSTER_STORAGE", ""),
        ("MUSTER_REGISTRY", "nowhere"),
        ("MUSTER_REGISTRY", "127.0.0.1:0"),
        ("MUSTER_LISTEN", "127.0.0.1:70000"),
        ("MUSTER_METRICS_LISTEN", "x"),
        ("MUSTER_PHI_THRESHOLD", "nan"),
        ("MUSTER_PHI_THRESHOLD", "0.5"),
        ("MUSTER_PHI_WINDOW", "many"),
        ("MUSTER_PHI_HEARTBEAT_MS", "0"),
        ("MUSTER_MONITOR_LOG_MEMORY_BYTES", "1"),
    ],
)
def test_bad_values_are_named(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Config.from_env({**SOUND, key: value})
    assert (refused.value.key, refused.value.value) == (key, value)
