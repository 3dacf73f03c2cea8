"""Which etcd a cluster may stand on."""

from __future__ import annotations

import pytest

from muster.etcd.versions import why_refused


@pytest.mark.parametrize(
    "version", ["3.4.21", "3.4.23", "3.4.100", "3.5.5", "3.5.21", "3.6.0", "3.6.0-rc.1", "4.0.0"]
)
def test_these_are_good(version: str) -> None:
    assert why_refused(version) is None


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2", "3.5.0-rc.0"])
def test_the_damaged_releases_are_refused_with_the_reason(version: str) -> None:
    why = why_refused(version)
    assert why is not None
    assert "may lose or change committed data" in why
    assert "replace it by 3.5.5 or newer" in why


@pytest.mark.parametrize("version", ["3.5.3", "3.5.4", "3.4.20", "3.4.0", "3.3.25", "2.9.9"])
def test_older_ones_are_refused(version: str) -> None:
    assert "use 3.5.5 or newer" in (why_refused(version) or "")


@pytest.mark.parametrize("version", ["", "latest", "3.5", "v3.5.9"])
def test_what_is_no_version_is_refused(version: str) -> None:
    assert "is none" in (why_refused(version) or "")
