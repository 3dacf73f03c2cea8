"""`python -m muster_scheduler`: campaigns for the lead, and leads while it holds it."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from importlib.metadata import version

import structlog

from muster.api.v1 import scheduler_pb2_grpc, storage_pb2, storage_pb2_grpc
from muster.cancellation import contained
from muster.domain.alarms import STORE_ROLLED_BACK
from muster.domain.errors import MusterError, StaleTerm, Unavailable
from muster.domain.policy import Policy
from muster.etcd.client import EtcdClient
from muster.etcd.election import Deposed, Elected, Election, observe
from muster.etcd.keys import LEADER_KEY
from muster.etcd.vetting import vet
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.metrics_http import serve_metrics
from muster.rpc.process import run
from muster.rpc.server import RpcServer
from muster_scheduler import metrics
from muster_scheduler.config import Config
from muster_scheduler.core.generation import Found, Lost, RolledBack
from muster_scheduler.core.witnesses import Witnesses
from muster_scheduler.errors import StoreChanged, passes
from muster_scheduler.leader import STORE_TIMEOUT_S, Leader
from muster_scheduler.learner import Learner
from muster_scheduler.publisher import Publisher
from muster_scheduler.service import SchedulerService
from muster_scheduler.store_halt import HALTED, Halt, until_decided
from muster_scheduler.store_marker import StoreMarker, show_lost
from muster_scheduler.stored_policy import StoredPolicy
from muster_scheduler.warming import Warming
from muster_scheduler.watching import follow_monitor, follow_registry

_LOG = structlog.get_logger("muster.scheduler")
_Store = storage_pb2_grpc.StorageServiceStub

# Between looks at an election whose loss is about to be reported.
_REPORT_PAUSE_S = 0.05


class Scheduler:
    """One scheduler process: a standby that becomes the leader, perhaps many times."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._secret = config.join_secret
        self.service = SchedulerService(version("muster-cluster"))
        self._storage = ServiceChannel(config.storage, secret=self._secret, what="storage")
        self._registry = ServiceChannel(config.registry, secret=self._secret, what="registry")
        several = len(config.monitors) > 1
        self._monitors = [
            ServiceChannel([m], secret=self._secret, what="monitor", brisk=several)
            for m in config.monitors
        ]
        self._warming = Warming()
        self._elected = asyncio.Event()
        self._etcd_seen = False
        self._advertise = config.advertise

    def why_not_ready(self) -> str | None:
        """None while leading with all tasks loaded, or while standing by for a living leader."""
        leader = self.service.leader
        if self.service.halt is not None:
            return HALTED + self.service.halt.why
        if leader is not None:
            return None if leader.ready.is_set() else "open tasks are still being loaded"
        if self._elected.is_set():
            return "it is elected, and storage has not given it a term yet"
        if self.service.leader_address and self.service.leader_address != self._advertise:
            return None
        return "no scheduler leads yet" if self._etcd_seen else "etcd does not answer"

    async def run(self, stop: asyncio.Event) -> None:
        """Serves and campaigns until `stop`."""
        server = RpcServer(self._config.listen, secret=self._secret, service="scheduler")
        server.add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, self.service)
        port = await server.start()
        if self._advertise.endswith(":0"):
            self._advertise = f"{self._advertise.rpartition(':')[0]}:{port}"
        http = serve_metrics(self._config.metrics_listen, self.why_not_ready)
        await http.start()
        client = EtcdClient(list(self._config.etcd))
        await client.open()
        etcd_is_good = asyncio.Event()
        election = Election(client, ttl_s=self._config.leader_ttl_s, value=self._advertise.encode())
        try:
            async with asyncio.TaskGroup() as group:
                work = [
                    group.create_task(
                        vet(client, etcd_is_good, embedded=self._config.etcd_embedded),
                        name="etcd's version",
                    ),
                    group.create_task(self._campaign(election, etcd_is_good), name="campaign"),
                    group.create_task(self._observe(client), name="observe"),
                    group.create_task(self._lead_when_elected(election, client), name="lead"),
                    group.create_task(self._warming.watch(), name="warm"),
                ]
                await stop.wait()
                # A leader that goes on purpose lets the next one in at once.
                try:
                    async with asyncio.timeout(2.0):
                        await election.resign()
                except (MusterError, TimeoutError) as error:
                    _LOG.warning("the lead could not be given back", reason=str(error))
                for task in work:
                    task.cancel()
        finally:
            await server.stop(1.0)
            await http.stop()
            await client.close()
            for channel in (self._storage, self._registry, *self._monitors):
                await channel.close()

    async def _campaign(self, election: Election, etcd_is_good: asyncio.Event) -> None:
        await etcd_is_good.wait()
        await election.campaign(self._report)

    def _report(self, change: Elected | Deposed) -> None:
        leader = self.service.leader
        if isinstance(change, Elected):
            self._elected.set()
            if leader is not None:
                leader.restricted = False
                leader.state.place_again = True
                leader.wake()
        else:
            self._elected.clear()
            if leader is not None:
                # Storage still confirms the term: what runs is seen to its end.
                leader.restricted = True

    async def _observe(self, client: EtcdClient) -> None:
        async for value in observe(client, LEADER_KEY):
            self._etcd_seen = True
            self.service.leader_address = value.decode() if value else ""

    async def _lead_when_elected(self, election: Election, client: EtcdClient) -> None:
        failures = 0
        marker = StoreMarker(client, self.service.alarms)
        while True:
            await self._elected.wait()
            if not election.is_leader():
                # A process that was stopped learns so here first; the report follows.
                await asyncio.sleep(_REPORT_PAUSE_S)
                continue
            try:
                await contained(self._lead_a_term(marker))
                failures = 0
            except* StaleTerm as group:
                _LOG.warning("another scheduler has taken the lead", reason=str(_first(group)))
            except* StoreChanged as group:
                _LOG.error("the lead is taken anew", reason=str(_first(group)))
            except* MusterError as group:
                _LOG.error(
                    "leading was interrupted", reason=str(_first(group)), exc_info=_bug(group)
                )
            failures += 1
            await asyncio.sleep(full_jitter(failures))

    async def _lead_a_term(self, marker: StoreMarker) -> None:
        """Takes a term and leads until it is lost; halts before a store that was rolled back."""
        await marker.read()
        answer = await self._storage.call(
            _Store,
            "AcquireTerm",
            storage_pb2.AcquireTermRequest(candidate=self._advertise, above_term=marker.above_term),
            timeout_s=STORE_TIMEOUT_S,
            retry=True,
        )
        found = Found(answer.clock_ms, answer.store, answer.weak, answer.run)
        verdict = marker.judge(found)
        if isinstance(verdict, RolledBack):
            await self._halt(verdict, found, answer.term, marker)
            return
        try:
            # Before anything is done in this term, so that it is never given out again.
            await marker.accept(found, answer.term)
        except Unavailable as error:
            # An etcd that takes no writes must not stop a leader that it let in.
            _LOG.warning("etcd is not told of the term", reason=str(error))
        lost = ""
        if isinstance(verdict, Lost):
            lost = verdict.why
            metrics.STORE_LOST_SECONDS.inc(verdict.ms / 1000)
        policies = StoredPolicy(self._storage, Policy(self._config.strategy))
        await policies.read()
        leader = Leader(
            self._storage, answer.term, answer.clock_ms, policies, self._advertise, answer.run
        )
        leader.state.quarantines = self._config.quarantines
        await leader.load_wishes()
        await self._lead(leader, marker, answer.store, lost)

    async def _halt(
        self, verdict: RolledBack, found: Found, term: int, marker: StoreMarker
    ) -> None:
        alarms = self.service.alarms
        publisher = Publisher(self._storage, term)
        halt = Halt(self._advertise, term, verdict.why, found, partial(marker.accept, found, term))
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(publisher.run(), name="publisher")
            alarms.publish_by(publisher.add)
            alarms.start(STORE_ROLLED_BACK, halt.why)
            self.service.halt = halt
            try:
                await until_decided(halt, self._storage, self._elected.is_set)
            finally:
                self.service.halt = None
                alarms.publish_by(None)
                publishing.cancel()

    async def _lead(self, leader: Leader, marker: StoreMarker, store: str, lost: str) -> None:
        # The election may have been lost while the term was being taken.
        leader.restricted = not self._elected.is_set()
        self.service.leader = leader
        metrics.LEADER.set(1)
        metrics.TERM.set(leader.term)
        _LOG.info("leading", term=leader.term)
        alarms = self.service.alarms
        alarms.publish_by(leader.publisher.add)
        leader.alarms = alarms
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(leader.run(), name="leader")
                group.create_task(marker.keep(leader, store), name="store marker")
                if lost:
                    group.create_task(show_lost(alarms, lost), name="lost writes")
                if self._config.learn_every_s:
                    learner = Learner(leader, self._config.learn_every_s)
                    group.create_task(learner.run(), name="learner")
                group.create_task(follow_registry(leader, self._registry), name="registry")
                witnesses = Witnesses()
                for monitor in self._monitors:
                    following = follow_monitor(leader, monitor, witnesses)
                    group.create_task(following, name="monitor")
        finally:
            self.service.leader = None
            alarms.publish_by(None)
            metrics.forget_leadership()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _bug(error: BaseException) -> BaseException | None:
    """The error, when its traceback is worth a line in the log."""
    first = _first(error)
    return None if isinstance(first, MusterError) and passes(first) else error


async def serve(stop: asyncio.Event) -> None:
    """Reads the environment and runs."""
    await Scheduler(Config.from_env(os.environ)).run(stop)


def main() -> None:
    """Entry point of `muster service scheduler`."""
    run(serve, service="scheduler")


if __name__ == "__main__":
    main()
