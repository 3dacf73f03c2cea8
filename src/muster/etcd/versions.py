"""Which versions of etcd a cluster may stand on. Pure."""

from __future__ import annotations

import re
from typing import Final

_NUMBER: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_DAMAGED: Final = range(3)
WANTED: Final = "3.5.5 or newer, or 3.4.21 or newer of 3.4"


def why_refused(version: str) -> str | None:
    """One sentence that says why no cluster may stand on this etcd; None when it may.

    `version` is as etcd tells it, such as 3.5.9 or 3.6.0-rc.1.
    """
    found = _NUMBER.match(version)
    if found is None:
        return f"it says {version!r} for its version, which is none; use {WANTED}"
    major, minor, patch = (int(part) for part in found.groups())
    if (major, minor) == (3, 5) and patch in _DAMAGED:
        return (
            "etcd 3.5.0 to 3.5.2 may lose or change committed data when a member crashes under "
            f"load, unseen by the others; replace it by {WANTED}"
        )
    if (major, minor, patch) >= (3, 5, 5) or ((3, 4, 21) <= (major, minor, patch) < (3, 5)):
        return None
    return f"etcd {major}.{minor}.{patch} has known errors that damage data; use {WANTED}"
