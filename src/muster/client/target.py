"""Which cluster a client speaks to: arguments, then the environment, then the profile."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from muster.client.errors import NoCluster
from muster.domain.errors import MusterError
from muster.local.profile import Profile, profile_path, read_profile

# What an HTTP header can carry.
_API_KEY = re.compile(r"[\x21-\x7e]+")


def find_target(url: str | None, api_key: str | None, environ: Mapping[str, str]) -> Profile:
    """The URLs and the key to use; raises NoCluster.

    A URL may be several, separated by commas: the gateways of one cluster. The profile's key is
    never sent to another URL than the profile's own.
    """
    url = url or environ.get("MUSTER_URL")
    api_key = api_key or environ.get("MUSTER_API_KEY")
    if not (url and api_key):
        try:
            profile = read_profile(environ)
        except MusterError as error:
            raise NoCluster(str(error)) from error
        if profile is None:
            missing = "MUSTER_API_KEY" if url else "MUSTER_URL" if api_key else ""
            raise NoCluster(
                f"{missing} is not set"
                if missing
                else f"no cluster is known ({profile_path(environ)} is missing); start one with "
                "`muster up`, or set MUSTER_URL and MUSTER_API_KEY",
                missing=True,
            )
        known = {one.rstrip("/") for one in profile.urls}
        if url and not known.issuperset(one.rstrip("/") for one in _several(url)):
            raise NoCluster("MUSTER_API_KEY is not set, and the profile's key is for another URL")
        urls, state_dir = _several(url) if url else profile.urls, profile.state_dir
        api_key = api_key or profile.api_key
    else:
        urls, state_dir = _several(url), ""
    for one in urls:
        _check_url(one)
    if not _API_KEY.fullmatch(api_key):
        raise NoCluster("the API key is not accepted; it is made of visible ASCII characters")
    return Profile(urls[0], api_key, state_dir, urls[1:])


def _several(url: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in url.split(",") if part.strip()) or (url,)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        good = False
    if not good:
        raise NoCluster(f"the cluster's URL {url!r} is not accepted; it reads http://HOST:PORT")
