"""Fault 35: an error at every call of a store in turn, and none of them swallowed."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.oracle.checker import Expectation
from benchmarks.oracle.cluster import BACK_WITHIN_S, Cluster, until
from benchmarks.oracle.rest import Refused
from benchmarks.oracle.scene import Limits, Scene, Strike
from benchmarks.oracle.service_faults import ServiceFault
from benchmarks.oracle.store_ground import Stores
from benchmarks.oracle.store_taps import Injector

KINDS = ("later", "never", "lost")
# Of each site in the short form, which takes a seeded choice of them.
_SHORT_SITES = 6
_OFTEN = 4
# What nobody asks for meanwhile is left; the run says how many.
_ASKED_WITHIN_S, _ASKED_SHORT_S = 20.0, 2.0
_EVIDENCE_WITHIN_S = 30.0
_LOGS = ("gateway", "scheduler", "standby", "monitor", "registry", "storage")
_BAD = ('"level": "warning"', '"level": "error"', '"level":"warning"', '"level":"error"')


class CallSites(ServiceFault):
    """Each error must lead to another try, to an error for who asked, or to a line in a log."""

    number = "35"
    name = "an error at every store and etcd call site"
    limits = Limits(also="none swallowed")
    stores = Stores(tapped=True)

    def strike(self, scene: Scene) -> Strike:
        cluster = scene.cluster
        scene.await_moment(latest=0.3)
        injectors = {tap: cluster.taps[tap].injector for tap in cluster.taps}
        strike = Strike(time.monotonic())
        strike.expectation = Expectation(harmed=frozenset(cluster.agent_ids), deaths=True)
        tally = _Tally()
        with Callers(cluster) as callers:
            until(lambda: callers.rounds >= 2, "rounds of calls", BACK_WITHIN_S)
            if not scene.short:
                # What only a new leader and a new runtime ask for is known after this.
                _disturb(cluster)
            sites = [(i, site) for i in injectors.values() for site in sorted(i.met)]
            scene.chance.shuffle(sites)
            # What was asked for once or twice belongs to beginnings, which take their time.
            often = [(i, site) for i, site in sites if i.met[site] >= _OFTEN]
            chosen = often[:_SHORT_SITES] if scene.short else sites
            for number, (injector, site) in enumerate(chosen):
                kinds = [scene.chance.choice(KINDS)] if scene.short else list(KINDS)
                if not scene.short and number % 10 == 5:
                    _disturb(cluster)
                _try(cluster, callers, injector, site, kinds, tally, scene.short)
        for injector in injectors.values():
            injector.disarm()
        strike.healed_s = time.monotonic()
        strike.problems += tally.swallowed
        strike.notes |= {
            "sites": len(sites),
            "struck": tally.struck,
            "not_asked": len(tally.not_asked),
            "retried": tally.retried,
            "told_to_caller": tally.told,
            "logged": tally.logged,
        }
        cluster.await_healthy()
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        return strike


@dataclass(slots=True)
class _Tally:
    struck: int = 0
    retried: int = 0
    told: int = 0
    logged: int = 0
    not_asked: list[str] = field(default_factory=list)
    swallowed: list[str] = field(default_factory=list)


def _try(
    cluster: Cluster,
    callers: Callers,
    injector: Injector,
    site: str,
    kinds: list[str],
    tally: _Tally,
    short: bool,
) -> None:
    """Lets the next calls of one site fail, and looks for what comes of it."""
    lines, errors = bad_lines(cluster), callers.errors
    injector.arm(site, kinds)
    try:
        until(
            lambda: not injector.left(site),
            f"calls of {site}",
            _ASKED_SHORT_S if short else _ASKED_WITHIN_S,
        )
    except TimeoutError:
        left = injector.left(site)
        injector.disarm()
        if left == len(kinds):
            tally.not_asked.append(site)
            return
    tally.struck += 1
    met = injector.met[site]
    found: set[str] = set()

    def look() -> bool:
        if injector.met[site] > met:
            found.add("retried")
        if callers.errors > errors:
            found.add("told")
        if bad_lines(cluster) > lines:
            found.add("logged")
        return bool(found)

    try:
        until(look, f"what came of an error at {site}", _EVIDENCE_WITHIN_S)
    except TimeoutError:
        tally.swallowed.append(f"an error at {site} was swallowed")
    tally.retried += "retried" in found
    tally.told += "told" in found
    tally.logged += "logged" in found


def bad_lines(cluster: Cluster) -> int:
    """Warnings and errors in all logs."""
    count = 0
    for name in _LOGS:
        log = cluster.log(name)
        count += sum(log.count(word) for word in _BAD)
    return count


def _disturb(cluster: Cluster) -> None:
    """A new leader, a new runtime: what they ask of the stores is asked."""
    leader = cluster.leader()
    if leader:
        cluster.kill(leader)
    runtime = cluster.runtime(cluster.agent_ids[0])
    with suppress(Exception):
        runtime.kill()
    cluster.await_healthy()


class Callers:
    """Goes through REST round after round, so that every kind of call is made again and again."""

    def __init__(self, cluster: Cluster) -> None:
        self.rounds = self.errors = 0
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Callers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        rest = self._cluster.rest()
        rest.persist("POST", f"/v1/agents/{self._cluster.agent_ids[-1]}/uncordon")
        rest.close()

    def _run(self) -> None:
        while not self._over.is_set():
            for call in self._round():
                if self._over.is_set():
                    return
                self._ask(*call)
            self.rounds += 1

    def _ask(self, method: str, path: str, body: Any = None) -> bytes:
        rest = self._cluster.rest(timeout_s=15.0)
        try:
            return rest.call(method, path, json.dumps(body).encode() if body is not None else None)
        except Refused:
            self.errors += 1
            return b""
        finally:
            rest.close()

    def _round(self) -> list[tuple[Any, ...]]:
        agent = self._cluster.agent_ids[-1]
        made = self._ask("POST", "/v1/keys", {"role": "viewer", "name": "oracle"})
        calls: list[tuple[Any, ...]] = [
            ("PUT", "/v1/kv/oracle", {"round": self.rounds}),
            ("GET", "/v1/kv/oracle"),
            ("GET", "/v1/kv"),
            ("DELETE", "/v1/kv/oracle"),
            ("GET", "/v1/policy"),
            ("PUT", "/v1/policy", {"strategy": "worst_fit"}),
            ("GET", "/v1/keys"),
            ("GET", "/v1/tasks?limit=5"),
            ("GET", "/v1/tasks?limit=5&state=PENDING&skill=work"),
            ("GET", "/v1/cluster"),
            ("GET", "/v1/agents"),
            ("POST", f"/v1/agents/{agent}/cordon"),
            ("POST", f"/v1/agents/{agent}/uncordon"),
        ]
        if made:
            calls.append(("DELETE", f"/v1/keys/{json.loads(made)['id']}"))
        return calls
