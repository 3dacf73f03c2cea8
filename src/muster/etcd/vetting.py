"""Asks each member of etcd for its version at the start of a service, and refuses bad ones."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from muster.domain.errors import ConfigurationError, Unavailable
from muster.etcd.client import EtcdClient
from muster.etcd.versions import why_refused

_LOG = structlog.get_logger("muster.etcd")

_AGAIN_S: Final = 1.0


async def vet(client: EtcdClient, first: asyncio.Event, *, embedded: bool) -> None:
    """Ends when every member has said its version; sets `first` when one has and is good.

    Members that do not answer are asked again. `embedded`: the etcd is one member that belongs to
    `muster up`, whose loss costs nothing, and any version will do. Raises ConfigurationError.
    """
    if embedded:
        first.set()
        return
    good: set[str] = set()
    while True:
        try:
            versions = await client.versions()
        except Unavailable:
            # Who needs etcd says that it is away.
            versions = {}
        for endpoint, version in versions.items():
            why = why_refused(version)
            if why is not None:
                raise ConfigurationError(
                    "MUSTER_ETCD_ENDPOINTS", endpoint, f"it runs {version}: {why}"
                )
            if endpoint not in good:
                good.add(endpoint)
                _LOG.info("a member of etcd is good", endpoint=endpoint, version=version)
        if good:
            first.set()
        if good.issuperset(client.endpoints):
            return
        await asyncio.sleep(_AGAIN_S)
