"""All that the routes work with, and the tasks that run beside them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Final

import structlog

from muster.api.v1 import registry_pb2
from muster.domain.errors import MusterError
from muster.rpc.agent_watch import follow_agents
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_s
from muster_gateway.admission import Admission
from muster_gateway.apikeys import KeyText
from muster_gateway.auth import Authenticator, read_key
from muster_gateway.bootstrap import read_bootstrap_key, register_bootstrap_key
from muster_gateway.config import Config
from muster_gateway.leader import LeaderClient
from muster_gateway.reading import TaskReader
from muster_gateway.reasons import WaitingReasons
from muster_gateway.skills import SkillCatalog
from muster_gateway.submitting import Submitter
from muster_gateway.tail import TailFeed
from muster_gateway.turning_away import TurningAway
from muster_gateway.watching import WatchBoard

_LOG = structlog.get_logger("muster.gateway")

# Storage is asked for a key that nobody has: the cheapest read that goes down to Redis.
_PROBE_KEY: Final = "probe"
_PROBE_EVERY_S: Final = 1.0
_PROBE_RETRY_S: Final = 0.05


@dataclass(slots=True)
class Readiness:
    """What still keeps the gateway from serving; None = nothing."""

    storage: str | None = "storage has not answered yet"
    bootstrap: str | None = None

    @property
    def why_not(self) -> str | None:
        return self.storage or self.bootstrap


class Gateway:
    """The connections of one gateway process. `start` and `close` belong to one loop."""

    def __init__(self, config: Config) -> None:
        secret = config.join_secret
        self.config = config
        self.readiness = Readiness()
        self._bootstrap_key: KeyText | None = None
        if config.bootstrap_key_file is not None:
            self._bootstrap_key = read_bootstrap_key(config.bootstrap_key_file)
            self.readiness.bootstrap = "the bootstrap key is not registered yet"
        self.storage = ServiceChannel(config.storage, secret=secret, what="storage")
        # The tail rotates through the addresses on its own.
        self._tail_channel = ServiceChannel(config.storage, secret=secret, what="storage")
        self._registry = (
            ServiceChannel(config.registry, secret=secret, what="the registry")
            if config.registry
            else None
        )
        self.monitors = tuple(
            ServiceChannel(
                (address,), secret=secret, what="the monitor", brisk=len(config.monitors) > 1
            )
            for address in config.monitors
        )
        self.leader = LeaderClient(config.schedulers, secret=secret)
        self.reasons = WaitingReasons(self.leader)
        self.board = WatchBoard()
        self.feed = TailFeed(self._tail_channel, self.board)
        self.reader = TaskReader(self.storage, self.feed, self.board)
        self.skills = SkillCatalog(self._bad_schema)
        self.admission = Admission(boot_s, random.random)
        self.turning_away = TurningAway()
        self.submitter = Submitter(self.leader, self.storage, self.board)
        self.auth = Authenticator(self.storage)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to connect; nothing needs to be there yet."""
        work = [
            ("tail of events", self.feed.run()),
            ("readiness", self._probe()),
            ("last uses", self.auth.touch_forever()),
        ]
        if self._registry is not None:
            work.append(("skills", follow_agents(self._registry, self._take_agents)))
        if self._bootstrap_key is not None:
            work.append(("bootstrap key", self._bootstrap(self._bootstrap_key)))
        self._tasks = [asyncio.create_task(coro, name=name) for name, coro in work]
        self.turning_away.start()

    async def watch_over(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; raises what one of the gateway's own tasks failed with."""
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            pending: set[asyncio.Task[object]] = {stopping, *self._tasks}
            while not stopping.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            stopping.cancel()

    def end_streams(self) -> None:
        """Lets long-polls and event streams answer what they have, at once."""
        self.feed.close()

    async def close(self) -> None:
        self.turning_away.stop()
        self.end_streams()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.auth.touch()
        await self.submitter.close()
        await self.reader.close()
        channels = (self.storage, self._tail_channel, *self.monitors)
        for channel in (*channels, *((self._registry,) if self._registry else ())):
            await channel.close()
        await self.leader.close()

    async def _bootstrap(self, key: KeyText) -> None:
        await register_bootstrap_key(self.storage, key)
        self.auth.forget(key.id)
        self.readiness.bootstrap = None

    async def _probe(self) -> None:
        while True:
            try:
                await read_key(self.storage, _PROBE_KEY, timeout_s=1.0, retry=False)
                self.readiness.storage = None
            except MusterError as error:
                self.readiness.storage = str(error)
            ready = self.readiness.storage is None
            await asyncio.sleep(_PROBE_EVERY_S if ready else _PROBE_RETRY_S)

    def _take_agents(self, message: registry_pb2.WatchAgentsResponse) -> None:
        if message.snapshot:
            self.skills.replace_all(message.agents)
        else:
            self.skills.update(message.agents, message.removed)

    def _bad_schema(self, skill: str, why: str) -> None:
        _LOG.warning(
            "a skill's input schema is not usable; inputs are not checked", skill=skill, why=why
        )
