"""Faults 17, 18 and 21: the power of a disk is cut, an old copy of Redis takes its place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

from benchmarks.oracle.checker import Expectation
from benchmarks.oracle.cluster import BACK_WITHIN_S, Cluster, until
from benchmarks.oracle.rest import Refused
from benchmarks.oracle.scene import Books, Limits, Scene, Strike
from benchmarks.oracle.service_faults import ServiceFault
from benchmarks.oracle.store_faults import Flood, stopped_tasks
from benchmarks.oracle.store_ground import RedisTalk, Stores, copy_of
from muster.etcd.keys import AGENTS_PREFIX
from muster.local.binaries import find_redis
from muster.local.ports import LOOPBACK

# Redis syncs once a second, and a second late at most.
EVERYSEC_LOSS_S = 2.0
_HALT_WITHIN_S = 30.0
# A leader writes down once a second how far Redis is; by then it has.
_STALE_S = 3.0


def cut_power(cluster: Cluster, name: str) -> float:
    """Of the disk of `redis` or `etcd`; it is started again on what has reached the disk. When it
    was cut."""
    disk = cluster.disks[name]
    process = psutil.Process(cluster.pid(name))
    cluster.hold(name)
    try:
        # A file system that is shut down under a sync may answer that it is done; in the dark
        # nobody would hear of it. So the store says nothing from just before the cut.
        process.suspend()
        cut_s = time.monotonic()
        disk.cut()
        end(process)
        disk.turn_off()
        disk.turn_on()
    finally:
        cluster.release(name)
    return cut_s


def end(process: psutil.Process) -> None:
    """kill -9, until it is gone."""
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    until(lambda: not _runs(process), "the end of a store", BACK_WITHIN_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class EtcdPowerCut(ServiceFault):
    """Fault 17: every registration that was acknowledged is still there."""

    number = "17"
    name = "etcd power cut"
    limits = Limits(also="0 lost registrations")
    stores = Stores(disks=True)

    def strike(self, scene: Scene) -> Strike:
        cluster = scene.cluster
        scene.await_moment()
        with cluster.etcd() as etcd:
            before = etcd.keys(AGENTS_PREFIX)
        strike = Strike(cut_power(cluster, "etcd"))
        with cluster.etcd() as etcd:
            after = etcd.keys(AGENTS_PREFIX)
        strike.healed_s = time.monotonic()
        for key, (_, revision) in before.items():
            found = after.get(key)
            strike.demand(found is not None and found[1] >= revision, f"{key} is gone or older")
        strike.notes["registrations"] = len(before)
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike


class RedisPowerCut(ServiceFault):
    """Fault 18, Redis syncs before it answers: nothing that was acknowledged is lost."""

    number = "18a"
    name = "Redis power cut, always"
    limits = Limits(also="0 lost")
    stores = Stores(disks=True)

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        with Flood(scene.load):
            time.sleep(scene.chance.uniform(0.1, 0.5))
            strike = Strike(cut_power(scene.cluster, "redis"))
            until(lambda: scene.cluster.is_ready("storage"), "Redis", BACK_WITHIN_S)
            strike.healed_s = time.monotonic()
        strike.expectation = stopped_tasks(scene, strike)
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike


class WeakRedisPowerCut(ServiceFault):
    """Fault 18, Redis syncs once a second: what is lost was acknowledged just before, and the
    cluster says so."""

    number = "18b"
    name = "Redis power cut, everysec"
    limits = Limits(also="≤ 2 s lost, and reported")
    stores = Stores(disks=True)

    def strike(self, scene: Scene) -> Strike:
        cluster = scene.cluster
        scene.await_moment()
        _sync(cluster, "everysec")
        said = _reports(cluster)
        with Flood(scene.load):
            time.sleep(scene.chance.uniform(1.5, 3.0))
            strike = Strike(cut_power(cluster, "redis"))
            until(lambda: cluster.is_ready("storage"), "Redis", BACK_WITHIN_S)
            until(lambda: _reports(cluster) > said, "a report of the loss", _HALT_WITHIN_S)
            strike.healed_s = time.monotonic()
            strike.detections_s.append(strike.healed_s - strike.struck_s)
        harmed = frozenset(cluster.agent_ids)
        gone = self._gone(scene, strike)
        strike.notes["acknowledged_and_lost"] = len(gone)
        strike.expectation = Expectation(harmed=harmed, deaths=True, excused=gone)
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike

    def _gone(self, scene: Scene, strike: Strike) -> frozenset[str]:
        """Tasks that were acknowledged in the last two seconds: the price."""
        load = scene.load
        at_risk = [
            entry
            for entry in load.journal.entries()
            if strike.struck_s - EVERYSEC_LOSS_S <= entry.acked_s <= strike.struck_s + 0.5
        ]
        rest = scene.cluster.rest()
        gone = set()
        for entry in at_risk:
            for ident in entry.ids:
                try:
                    rest.persist("GET", f"/v1/tasks/{ident}")
                except Refused as refused:
                    if refused.status == 404:
                        gone.add(ident)
        rest.close()
        return frozenset(gone)

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:  # noqa: ARG002
        _sync(scene.cluster, "always")


def _sync(cluster: Cluster, how: str) -> None:
    """Sets `appendfsync`, for the next start too, and lets storage look at it anew."""
    with cluster.redis() as redis:
        redis("CONFIG", "SET", "appendfsync", how)
        redis("CONFIG", "REWRITE")
        redis("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    until(lambda: cluster.is_ready("storage"), "storage", BACK_WITHIN_S)
    until(cluster.leader, "a leader", BACK_WITHIN_S)


def _reports(cluster: Cluster) -> int:
    """How often schedulers have told of lost writes."""
    logs = cluster.log("scheduler") + cluster.log("standby")
    return logs.count("without having synced")


class StaleReplica(ServiceFault):
    """Fault 21: a replica that had been cut off takes the place of Redis; then the right data is
    put back."""

    number = "21"
    name = "stale replica promoted"
    limits = Limits(detection_s=20.0, also="scheduling halts, 0 lost")

    def strike(self, scene: Scene) -> Strike:
        cluster, load = scene.cluster, scene.load
        folder = cluster.folder / "replica"
        replica = Replica(cluster, folder)
        try:
            scene.await_moment(latest=0.3)
            replica.cut_off()
            time.sleep(_STALE_S)
            # Of the right data.
            kept = cluster.folder / "kept"
            strike = Strike(time.monotonic())
            cluster.hold("redis")
            end(psutil.Process(cluster.pid("redis")))
            replica.stop()
            data = cluster.state_dir / "redis"
            _move(data, kept)
            _move(folder, data)
            cluster.release("redis")
            put_s = time.monotonic()
            until(lambda: halted(cluster), "a halt", _HALT_WITHIN_S)
            halted_s = time.monotonic()
            strike.detections_s.append(halted_s - put_s)
            self._while_halted(scene, strike)
            cluster.hold("redis")
            end(psutil.Process(cluster.pid("redis")))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _move(data, folder)
            _move(kept, data)
            cluster.release("redis")
        finally:
            replica.stop()
            cluster.release("redis")
        strike.healed_s = time.monotonic()
        until(lambda: not halted(cluster) and cluster.leader(), "a leader", _HALT_WITHIN_S)
        strike.expectation = stopped_tasks(scene, strike)
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        begun = [
            mark
            for mark in load.side.read()
            if mark.phase == "begin" and halted_s + 1.0 < mark.at_s < strike.healed_s
        ]
        strike.demand(not begun, f"{len(begun)} executions began while scheduling was halted")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(kept, ignore_errors=True)
        return strike

    def _while_halted(self, scene: Scene, strike: Strike) -> None:
        cluster = scene.cluster
        time.sleep(2.0 if scene.short else 10.0)
        rest = cluster.rest()
        try:
            rest.call("POST", "/v1/tasks", json.dumps({"skill": "echo"}).encode())
            strike.demand(False, "a submission was accepted while scheduling was halted")
        except Refused as refused:
            strike.demand(refused.status == 503, f"a submission was answered {refused}")
            strike.demand("store_rolled_back" in refused.why, refused.why)
        finally:
            rest.close()
        strike.demand(bool(halted(cluster)), "scheduling went on by itself")


def halted(cluster: Cluster) -> str:
    """Why nothing is scheduled; empty when it is, or nobody says."""
    rest = cluster.rest(timeout_s=5.0)
    try:
        return str(json.loads(rest.call("GET", "/v1/cluster")).get("halted") or "")
    except (Refused, ValueError):
        return ""
    finally:
        rest.close()


class Replica:
    """A Redis of its own that follows the cluster's."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        folder.mkdir()
        password = cluster.facts["redis_password"]
        self.port = _free_port()
        self._process = subprocess.Popen(
            [
                str(find_redis(os.environ)),
                *("--port", str(self.port), "--bind", LOOPBACK, "--dir", str(folder)),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
                *("--replicaof", LOOPBACK, str(cluster.facts["ports"]["redis"])),
                *("--masterauth", password, "--requirepass", password),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._password = password
        until(self._follows, "a replica that follows", BACK_WITHIN_S)

    def _follows(self) -> bool:
        try:
            with RedisTalk(self.port, self._password) as redis:
                shown = redis.info("replication")
                # The first sync makes new append-only files; they must be whole.
                rewriting = redis.info("persistence")["aof_rewrite_in_progress"] != "0"
        except OSError:
            return False
        return shown.get("master_link_status") == "up" and not rewriting

    def cut_off(self) -> None:
        """What comes after this is not in it."""
        with RedisTalk(self.port, self._password) as redis:
            redis("REPLICAOF", "NO", "ONE")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(BACK_WITHIN_S)


def _move(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in copy_of(source):
        shutil.move(path, target / path.name)


def _free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
