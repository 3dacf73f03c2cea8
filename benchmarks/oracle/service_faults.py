"""Faults 1 to 5, 8, 10, 11 and 27: services and etcd, killed, paused, their replies lost."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

from benchmarks.oracle.cluster import BACK_WITHIN_S, SCHEDULERS, SERVICES, until
from benchmarks.oracle.load import Shape
from benchmarks.oracle.reply_cutter import ReplyCutter
from benchmarks.oracle.scene import Books, Ground, Limits, Scene, Strike

LEADER_TTL_S = 3.0
TAKEOVER_S = 5.0
# An agent's lease is gone 10 s after its last renewal.
AGENT_TTL_S = 10.0
_LEADER_WITHIN_S = 60.0
# Agents beat every second, so every link carries something in this time, also when this machine
# stalls for some seconds.
REPLY_WITHIN_S = 30.0


class ServiceFault(Ground):
    """A fault that no task and no agent may feel: nothing moves, nothing is charged."""

    number = ""
    name = ""
    limits = Limits(also="0 tasks moved")

    def shape(self, tasks: int, short: bool) -> Shape:  # noqa: ARG002 -- others take it
        return Shape(tasks)

    def strike(self, scene: Scene) -> Strike:
        raise NotImplementedError

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        """Nothing beyond what the checker demands."""


def killed(scene: Scene, *names: str, away_s: float = 0.0) -> Strike:
    """kill -9 of services; waits until they are ready and a later task has been done.

    Detection is until all have been started again, recovery until the later of both. When they
    are kept away for `away_s`, both count from their return.
    """
    cluster = scene.cluster
    old = {name: cluster.pid(name) for name in names}
    if away_s:
        for name in names:
            cluster.hold(name)
    struck_s = cluster.kill(*names)
    if away_s:
        time.sleep(away_s)
        for name in names:
            cluster.release(name)
    strike = Strike(struck_s, struck_s + away_s)
    until(
        lambda: all(cluster.pid(name) != pid for name, pid in old.items()),
        f"new processes of {', '.join(names)}",
        BACK_WITHIN_S,
    )
    strike.detections_s.append(time.monotonic() - strike.healed_s)
    until(lambda: all(cluster.is_ready(name) for name in names), "ready", BACK_WITHIN_S)
    ready_s = time.monotonic() - strike.healed_s
    strike.recoveries_s.append(max(ready_s, scene.first_end_after_s(strike.healed_s)))
    return strike


class GatewayKilled(ServiceFault):
    """Fault 1: while requests are under way; the client sends them again with the same key."""

    number = "1"
    name = "kill -9 gateway mid-submission"
    limits = Limits(also="one task per key and position")

    def shape(self, tasks: int, short: bool) -> Shape:
        # More requests to be hit, each long enough to be hit in the middle.
        return Shape(tasks, batch=50 if short else 200)

    def strike(self, scene: Scene) -> Strike:
        first: Strike | None = None
        interrupted = 0
        for _ in range(1 if scene.short else 3):
            if scene.load.burst_done.is_set():
                break
            until(
                lambda: scene.load.sending.is_set() or scene.load.burst_done.is_set(),
                "a submission",
                BACK_WITHIN_S,
            )
            time.sleep(scene.chance.uniform(0.0, 0.02))
            before = len(scene.load.burst.refused)
            strike = killed(scene, "gateway")
            interrupted += len(scene.load.burst.refused) > before
            if first is None:
                first = strike
            else:
                first.detections_s += strike.detections_s
                first.recoveries_s += strike.recoveries_s
        assert first is not None, "the burst was over before it began"
        first.notes["requests_interrupted"] = interrupted
        return first


class LeaderKilled(ServiceFault):
    """Fault 2: a standby takes over; submissions are accepted all the while."""

    number = "2"
    name = "kill -9 scheduler leader"
    limits = Limits(detection_s=TAKEOVER_S, also="submissions accepted throughout")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        leader: str = until(scene.cluster.leader, "a leader", _LEADER_WITHIN_S)
        struck_s = scene.cluster.kill(leader)
        strike = Strike(struck_s, struck_s)
        strike.recoveries_s.append(scene.first_end_after_s(struck_s))
        return strike

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        """Detection: until the next leader has its term."""
        taken = [e.at_s for e in books.events if e.leader and e.at_s >= strike.struck_s - 0.01]
        strike.demand(bool(taken), "no leader took over")
        strike.detections_s += [max(0.0, at_s - strike.struck_s) for at_s in taken[:1]]
        accepted = scene.load.trickle
        strike.notes["refused"] = len(accepted.refused)
        strike.demand(not accepted.refused, f"{len(accepted.refused)} submissions were refused")
        until_s = strike.struck_s + TAKEOVER_S
        strike.notes["submission_gap_s"] = accepted.longest_gap_s(strike.struck_s, until_s)


class LeaderPaused(LeaderKilled):
    """Fault 10: the old leader wakes up when another one has led for a while."""

    number = "10"
    name = "SIGSTOP leader 3×TTL, then CONT"
    limits = Limits(detection_s=TAKEOVER_S, also="0 writes with the old term")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        leader: str = until(scene.cluster.leader, "a leader", _LEADER_WITHIN_S)
        process = psutil.Process(scene.cluster.pid(leader))
        struck_s = time.monotonic()
        process.suspend()
        pause_s = 0.0 if scene.short else 3 * LEADER_TTL_S
        try:
            strike = Strike(struck_s)
            # By then another one leads.
            strike.recoveries_s.append(scene.first_end_after_s(struck_s))
            time.sleep(max(0.0, struck_s + pause_s - time.monotonic()))
            strike.healed_s = time.monotonic()
        finally:
            process.resume()
        return strike


class MonitorKilled(ServiceFault):
    """Fault 3: and kept away for longer than any suspicion takes."""

    number = "3"
    name = "kill -9 monitor"
    limits = Limits(also="nothing evicted meanwhile")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        away_s = 0.0 if scene.short else scene.chance.uniform(3.0, 12.0)
        return killed(scene, "monitor", away_s=away_s)


class RegistryKilled(ServiceFault):
    """Fault 4: with most seeds until the agents' leases are gone."""

    number = "4"
    name = "kill -9 registry"
    limits = Limits(also="agents re-register, 0 migrations")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        away_s = 0.0
        if not scene.short and scene.chance.random() < 0.6:
            away_s = AGENT_TTL_S + scene.chance.uniform(1.0, 5.0)
        return killed(scene, "registry", away_s=away_s)


class StorageKilled(ServiceFault):
    """Fault 5."""

    number = "5"
    name = "kill -9 storage service"
    limits = Limits(also="callers retry")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        return killed(scene, "storage")


class AllKilled(ServiceFault):
    """Fault 8: the standby too."""

    number = "8"
    name = "kill -9 all services"
    limits = Limits(recovery_s=30.0)

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        return killed(scene, *SERVICES)


class EtcdPaused(ServiceFault):
    """Fault 11: every agent's lease is gone, and every agent lives."""

    number = "11"
    name = "SIGSTOP etcd 15 s"
    limits = Limits(also="0 migrations")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        process = psutil.Process(scene.cluster.pid("etcd"))
        struck_s = time.monotonic()
        process.suspend()
        try:
            time.sleep(AGENT_TTL_S + 0.5 if scene.short else 15.0)
        finally:
            process.resume()
        strike = Strike(struck_s, time.monotonic())
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike


class RepliesLost(ServiceFault):
    """Fault 27: on each kind of link in turn requests arrive and their replies do not."""

    number = "27"
    name = "replies dropped after commit"
    limits = Limits(also="the retry returns the same result")
    proxied = True

    def shape(self, tasks: int, short: bool) -> Shape:
        return Shape(tasks, batch=25 if short else 50)

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment(latest=0.2)
        links = [["gateway"], ["storage"], list(SCHEDULERS)] * (1 if scene.short else 2)
        scene.chance.shuffle(links)
        strike = Strike(time.monotonic())
        dropped = 0
        for names in links:
            proxies = [scene.cluster.proxies[name] for name in names]
            dropped += _lose_replies(proxies, scene.chance.uniform(0.05, 0.3))
            strike.recoveries_s.append(scene.first_end_after_s(time.monotonic()))
        strike.healed_s = time.monotonic()
        strike.demand(
            dropped == len(links), f"replies were lost on {dropped} of {len(links)} links"
        )
        return strike


def _lose_replies(proxies: list[ReplyCutter], for_s: float) -> bool:
    """Whether replies were lost: a link that carries nothing in time loses nothing."""

    def lost() -> int:
        return sum(proxy.dropped_bytes for proxy in proxies)

    before = lost()
    for proxy in proxies:
        proxy.mute()
    time.sleep(for_s)
    with suppress(TimeoutError):
        until(lambda: lost() > before, "a lost reply", REPLY_WITHIN_S)
    for proxy in proxies:
        proxy.cut()
    return lost() > before
