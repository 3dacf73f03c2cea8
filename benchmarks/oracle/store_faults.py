"""Faults 12, 14, 15, 16, 19 and 20: stores that stand still, are away, full or compacted."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import suppress

import grpc
import hiredis
import psutil

from benchmarks.oracle.checker import Expectation
from benchmarks.oracle.cluster import BACK_WITHIN_S, SERVICES, Cluster, until
from benchmarks.oracle.load import Load
from benchmarks.oracle.rest import Refused
from benchmarks.oracle.scene import Books, Limits, Scene, Strike
from benchmarks.oracle.service_faults import LEADER_TTL_S, ServiceFault
from benchmarks.oracle.stall_faults import PLACED_UNTIL_S
from benchmarks.oracle.store_ground import Stores
from muster.api.v1 import registry_pb2, registry_pb2_grpc
from muster.etcd.keys import AGENTS_PREFIX
from muster.rpc.channels import CHANNEL_OPTIONS, SECRET_KEY

# Storage gives a silent Redis up after 3 s.
REDIS_GIVEN_UP_S = 3.0
# Of all services together, while nothing can be written: queues are bounded.
MAX_GROWTH_BYTES = 512 * 1024 * 1024
_FLOOD_THREADS = 4
_FLOOD_PAUSE_S = 0.05
_ALARM_WITHIN_S = 30.0
# etcd takes requests of up to 1.5 MiB.
_FILL_BYTES = 1024 * 1024


def resident_bytes(cluster: Cluster) -> int:
    """Of all services."""
    return sum(psutil.Process(cluster.pid(name)).memory_info().rss for name in SERVICES)


class Flood:
    """Threads that go on submitting, each batch with the same key until it is accepted."""

    def __init__(self, load: Load, threads: int = _FLOOD_THREADS) -> None:
        self._load = load
        self._over = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _run(self) -> None:
        try:
            while not self._over.wait(_FLOOD_PAUSE_S):
                self._load.submit([self._load.task("wait", 20.0) for _ in range(20)])
        except BaseException as error:  # noqa: BLE001 -- raised by who ends the flood
            self._failures.append(error)


def refusals(load: Load, from_s: float, to_s: float) -> list[str]:
    """Why submissions were refused in a time."""
    both = [*load.burst.refused, *load.trickle.refused]
    return [why for at_s, why in both if from_s <= at_s <= to_s]


class RedisPaused(ServiceFault):
    """Fault 12: longer than anything waits for it."""

    number = "12"
    name = "SIGSTOP Redis 30 s"
    limits = Limits(also="503, memory bounded")

    def strike(self, scene: Scene) -> Strike:
        cluster, load = scene.cluster, scene.load
        scene.await_moment()
        before = resident_bytes(cluster)
        process = psutil.Process(cluster.pid("redis"))
        strike = Strike(time.monotonic())
        with Flood(load):
            process.suspend()
            try:
                time.sleep(REDIS_GIVEN_UP_S + 3.0 if scene.short else 30.0)
                grown = resident_bytes(cluster) - before
                strike.notes["grown_mib"] = round(grown / 2**20, 1)
                strike.demand(grown < MAX_GROWTH_BYTES, f"services grew by {grown} bytes")
                _ask_while_away(cluster, strike)
            finally:
                process.resume()
            strike.healed_s = time.monotonic()
        strike.expectation = stopped_tasks(scene, strike)
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        said = refusals(load, strike.struck_s, strike.healed_s + 1.0)
        strike.demand(any(why.startswith("503") for why in said), "no submission was refused")
        return strike


def stopped_tasks(scene: Scene, strike: Strike) -> Expectation:
    """Agents end `stop` tasks 9 s after the last beat that a leader answered, and a leader answers
    none without Redis: they begin again, perhaps elsewhere."""
    if strike.healed_s - strike.struck_s < 8.0:
        return Expectation()
    return Expectation(harmed=frozenset(scene.cluster.agent_ids))


def _ask_while_away(cluster: Cluster, strike: Strike) -> None:
    """A read is answered 503 with Retry-After, soon."""
    status, retry_after, took_s = _get(cluster, "/v1/tasks?limit=1")
    strike.demand(status == 503, f"a read was answered {status} while Redis was away")
    strike.demand(bool(retry_after), "503 without Retry-After")
    strike.notes["refused_within_s"] = round(took_s, 2)


def _get(cluster: Cluster, path: str) -> tuple[int, str, float]:
    """Status, Retry-After, seconds; retried while a request that came before it times out."""
    import http.client  # noqa: PLC0415

    began_s = time.monotonic()
    connection = http.client.HTTPConnection(cluster.url.partition("//")[2], timeout=30.0)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {cluster.api_key}"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers.get("Retry-After", ""), time.monotonic() - began_s
    finally:
        connection.close()


class EtcdDown(ServiceFault):
    """Fault 14: longer than every lease; tasks that run are done, nothing new begins."""

    number = "14"
    name = "etcd down 5 min"
    limits = Limits(also="running tasks finish, 0 migrations")

    def strike(self, scene: Scene) -> Strike:
        cluster, load = scene.cluster, scene.load
        scene.await_moment()
        away_s = 11.0 if scene.short else 300.0
        # `stop` tasks go on for as long as a leader answers beats.
        slow = load.submit(
            [
                load.task("wait", 1000 * (away_s - 2.0), stop=True, priority=100)
                for _ in cluster.agent_ids
            ],
            stop=True,
        )
        until(
            lambda: {task for task, _ in load.side.running()} >= set(slow),
            "slow tasks",
            BACK_WITHIN_S,
        )
        cluster.hold("etcd")
        strike = Strike(cluster.kill("etcd"))
        try:
            time.sleep(away_s)
            load.side.read()
            done = sum(load.side.first_end_s(task) is not None for task in slow)
            strike.demand(done == len(slow), f"{done} of {len(slow)} running tasks were done")
            accepted = [
                at_s for at_s in load.trickle.accepted_s if at_s > strike.struck_s + LEADER_TTL_S
            ]
            strike.demand(len(accepted) > away_s, "submissions were not accepted without etcd")
        finally:
            cluster.release("etcd")
        strike.healed_s = time.monotonic()
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:  # noqa: ARG002
        from_s = strike.struck_s + PLACED_UNTIL_S
        placed = [
            event
            for event in books.events
            if event.state == "ASSIGNED" and from_s < event.at_s < strike.healed_s
        ]
        strike.demand(not placed, f"{len(placed)} tasks were placed without etcd")


class EtcdCompacted(ServiceFault):
    """Fault 15: an agent goes while the registry cannot see it, and the history is gone too."""

    number = "15"
    name = "etcd compacted under a watch"
    limits = Limits(also="the registry's view equals a fresh list")

    def strike(self, scene: Scene) -> Strike:
        cluster = scene.cluster
        scene.await_moment()
        ghost = f"ghost-{scene.chance.randrange(10**9)}"
        process = cluster.start_agent_like("agent-1", ghost, {"MUSTER_SKILLS": ""})
        until(lambda: cluster.agent_states().get(ghost) == "READY", ghost, BACK_WITHIN_S)
        registry = psutil.Process(cluster.pid("registry"))
        strike = Strike(time.monotonic(), 0.0, Expectation(harmed=frozenset({ghost})))
        registry.suspend()
        try:
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
            process.wait()
            with cluster.etcd() as etcd:
                etcd.delete(AGENTS_PREFIX + ghost)
                for number in range(scene.chance.randrange(5, 50)):
                    etcd.put("oracle/junk", b"%d" % number)
                etcd.compact(etcd.delete("oracle/junk"))
            # Its watch must be made anew, from a revision that is gone.
            old = cluster.pid("etcd")
            cluster.kill("etcd")
            until(lambda: cluster.pid("etcd") != old, "etcd", BACK_WITHIN_S)
        finally:
            registry.resume()
        strike.healed_s = time.monotonic()
        until(lambda: view_is_fresh(cluster), "a view that equals a fresh list", BACK_WITHIN_S)
        strike.recoveries_s.append(time.monotonic() - strike.healed_s)
        with cluster.etcd() as etcd:
            strike.demand(AGENTS_PREFIX + ghost not in etcd.keys(AGENTS_PREFIX), "a ghost is back")
        return strike


def view_is_fresh(cluster: Cluster) -> bool:
    """Whether the registry shows what etcd holds."""
    with cluster.etcd() as etcd:
        listed = {key.removeprefix(AGENTS_PREFIX) for key in etcd.keys(AGENTS_PREFIX)}
    address = f"127.0.0.1:{cluster.facts['ports']['registry']}"
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        try:
            answer = registry_pb2_grpc.RegistryServiceStub(channel).ListAgents(
                registry_pb2.ListAgentsRequest(),
                timeout=5.0,
                metadata=((SECRET_KEY, cluster.facts["join_secret"]),),
                wait_for_ready=True,
            )
        except grpc.RpcError:
            return False
    return {agent.spec.id for agent in answer.agents} == listed


class EtcdFull(ServiceFault):
    """Fault 16: its database has no room; who leads goes on, and says so."""

    number = "16"
    name = "etcd quota full"
    limits = Limits(also="clear alarm, no wedge")
    stores = Stores(disks=True)

    def strike(self, scene: Scene) -> Strike:
        cluster = scene.cluster
        scene.await_moment()
        strike = Strike(time.monotonic())
        _fill_etcd(cluster)
        try:
            until(lambda: "etcd_refuses_writes" in alarms(cluster), "an alarm", _ALARM_WITHIN_S)
            strike.detections_s.append(time.monotonic() - strike.struck_s)
            full_s = time.monotonic()
            strike.notes["done_while_full_s"] = scene.first_end_after_s(full_s)
            if not scene.short:
                # The next leader cannot be elected before there is room.
                leader: str = until(cluster.leader, "a leader", BACK_WITHIN_S)
                cluster.kill(leader)
                time.sleep(10.0)
        finally:
            with cluster.etcd() as etcd:
                etcd.compact(etcd.delete("oracle/fill"))
                etcd.make_room()
        strike.healed_s = time.monotonic()
        until(lambda: not alarms(cluster), "the end of the alarm", _ALARM_WITHIN_S)
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike


def _fill_etcd(cluster: Cluster) -> None:
    """Until it takes no more."""
    with cluster.etcd() as etcd:
        for number in range(10_000):
            try:
                etcd.put(f"oracle/fill/{number}", bytes(_FILL_BYTES))
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return
                raise
    raise AssertionError("etcd was never full")


def alarms(cluster: Cluster) -> dict[str, str]:
    """What `GET /v1/cluster` says; {"": why} while nobody does."""
    rest = cluster.rest(timeout_s=5.0)
    try:
        shown = json.loads(rest.call("GET", "/v1/cluster"))
    except (Refused, ValueError) as error:
        return {"": str(error)}
    finally:
        rest.close()
    if shown["leader"] is None:
        return {"": "nobody leads"}
    found: dict[str, str] = shown.get("alarms") or {}
    return found


class RedisDiskFull(ServiceFault):
    """Fault 19: Redis, told to sync always, ends itself; what it acknowledged is there."""

    number = "19"
    name = "Redis disk full"
    limits = Limits(also="no false success")
    stores = Stores(disks=True)

    def strike(self, scene: Scene) -> Strike:
        cluster, load = scene.cluster, scene.load
        scene.await_moment()
        disk = cluster.disks["redis"]
        strike = Strike(time.monotonic())
        disk.fill()
        try:
            until(
                lambda: any(
                    why.startswith("503")
                    for why in refusals(load, strike.struck_s, time.monotonic())
                ),
                "a refusal",
                BACK_WITHIN_S,
            )
            strike.detections_s.append(time.monotonic() - strike.struck_s)
            time.sleep(1.0 if scene.short else 20.0)
        finally:
            disk.drain()
        strike.healed_s = time.monotonic()
        strike.expectation = stopped_tasks(scene, strike)
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike


class RedisMemoryFull(ServiceFault):
    """Fault 20: it has more than it may have, and must refuse, not forget."""

    number = "20"
    name = "Redis maxmemory"
    limits = Limits(also="rejects, never evicts")

    def strike(self, scene: Scene) -> Strike:
        cluster, load = scene.cluster, scene.load
        scene.await_moment()
        with cluster.redis() as redis:
            strike = Strike(time.monotonic())
            redis("CONFIG", "SET", "maxmemory", 1024 * 1024)
            try:
                until(
                    lambda: any(
                        why.startswith("503")
                        for why in refusals(load, strike.struck_s, time.monotonic())
                    ),
                    "a refusal",
                    BACK_WITHIN_S,
                )
                strike.detections_s.append(time.monotonic() - strike.struck_s)
                with suppress(hiredis.ReplyError):
                    redis("SET", "oracle:junk", "x")
                    strike.demand(False, "Redis took a write beyond its memory")
                time.sleep(1.0 if scene.short else 20.0)
            finally:
                redis("CONFIG", "SET", "maxmemory", 0)
            strike.healed_s = time.monotonic()
            evicted = redis.info("stats")["evicted_keys"]
        strike.demand(evicted == "0", f"{evicted} keys were evicted")
        strike.expectation = stopped_tasks(scene, strike)
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike


def fingerprint(values: dict[str, tuple[bytes, int]]) -> str:
    """Of keys with their values and revisions."""
    digest = hashlib.sha256()
    for key, (value, revision) in sorted(values.items()):
        digest.update(f"{key} {revision} {len(value)} ".encode() + value)
    return digest.hexdigest()
