"""The profile: what `muster up` leaves behind so that client commands just work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muster.domain.errors import ConfigurationError
from muster.local.state import write_private


@dataclass(frozen=True, slots=True)
class Profile:
    """Where a cluster is and the key to it; `state_dir` is empty for one not started here.

    `others` are the URLs of its other gateways.
    """

    url: str
    api_key: str
    state_dir: str = ""
    others: tuple[str, ...] = ()

    @property
    def urls(self) -> tuple[str, ...]:
        """Of all gateways, the one to begin with first."""
        return (self.url, *self.others)


def profile_path(environ: Mapping[str, str]) -> Path:
    """`$MUSTER_PROFILE`, else `muster/profile.json` under `$XDG_CONFIG_HOME` or `~/.config`."""
    if chosen := environ.get("MUSTER_PROFILE"):
        return Path(chosen)
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "muster" / "profile.json"


def read_profile(environ: Mapping[str, str]) -> Profile | None:
    """None when there is none; raises ConfigurationError when it cannot be read."""
    path = profile_path(environ)
    try:
        stored = json.loads(path.read_text())
        return Profile(
            url=str(stored["url"]),
            api_key=str(stored["api_key"]),
            state_dir=str(stored.get("state_dir", "")),
            others=tuple(str(url) for url in stored.get("others", ())),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            "profile", str(path), f"it cannot be read ({error}); `muster up` writes a new one"
        ) from error


def write_profile(profile: Profile, environ: Mapping[str, str]) -> Path:
    """Replaces the profile, readable by its owner alone; raises OSError."""
    path = profile_path(environ)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(
        path,
        json.dumps(
            {
                "url": profile.url,
                "api_key": profile.api_key,
                "state_dir": profile.state_dir,
                "others": profile.others,
            }
        ),
    )
    return path
