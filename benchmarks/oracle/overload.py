"""Fault 32: ten times as many requests as the cluster can serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.oracle.books import ENDED_STATES, Acknowledged
from benchmarks.oracle.cluster import until
from benchmarks.oracle.load import Shape
from benchmarks.oracle.scene import Books, Ground, Limits, Scene, Strike

TIMES = 10
# Of each request. With one, a gateway on one core takes on about as many requests as clients on
# the other can send, so nobody could offer ten times that.
TASKS = 20
PEAK_S, PEAK_SHORT_S = 5.0, 1.0
FLOOD_S, FLOOD_SHORT_S = 8.0, 1.5
# What is measured begins when queues have filled.
RAMP_S, RAMP_SHORT_S = 2.0, 0.2
CALLERS = 64
PROCESSES = 2
# Of each client process. An arrival that finds none free is counted and not sent: it is what is
# left in the queues of kernels.
CONNECTIONS, CONNECTIONS_SHORT = 4_000, 100
LEAST_GOODPUT, MOST_REPEATS = 0.8, 0.2
# What generators must reach for the figures to be about ten times the peak.
LEAST_OFFERED = 8.0
_WAIT_S = 60.0
# A flood leaves work for minutes; also what was taken and never answered.
_DRAINED_WITHIN_S = 300.0
_REWRITTEN_WITHIN_S = 60.0
_ROOT = Path(__file__).resolve().parents[2]


class Overload(Ground):
    """Clients have half of the cores, the cluster the others, in both measurements."""

    number = "32"
    name = "10× overload"
    alone = True
    limits = Limits(also="goodput ≥ 80 % of peak, repeats ≤ 20 % of requests")

    def __init__(self) -> None:
        self._unknown: dict[str, float] = {}

    def why_not(self) -> str:
        cores = len(os.sched_getaffinity(0))
        return "" if cores > 1 else "clients and cluster need a core each"

    def shape(self, tasks: int, short: bool) -> Shape:  # noqa: ARG002
        return Shape(0, trickle=False)

    def strike(self, scene: Scene) -> Strike:
        cores = sorted(os.sched_getaffinity(0))
        own, others = cores[: len(cores) // 2], cores[len(cores) // 2 :]
        _confine(scene, own)
        try:
            strike = Strike(time.monotonic())
            self._unknown = _measure(scene, strike, others)
            if not scene.short:
                _demand_figures(strike)
            _await_drained(scene)
            strike.healed_s = time.monotonic()
            return strike
        finally:
            _confine(scene, cores)

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        _settle(scene, strike, books, self._unknown)


def _measure(scene: Scene, strike: Strike, cores: list[int]) -> dict[str, float]:
    """The peak, then the flood. Answers what was never answered, by key, and when it was sent."""
    peak_s = PEAK_SHORT_S if scene.short else PEAK_S
    flood_s = FLOOD_SHORT_S if scene.short else FLOOD_S
    ramp_s = RAMP_SHORT_S if scene.short else RAMP_S
    most = CONNECTIONS_SHORT if scene.short else CONNECTIONS
    clients = Clients(scene, cores)
    _rewrite_log(scene)
    before = _cpu_s(scene)
    from_s = time.monotonic() + ramp_s
    calm = clients.run("calm", peak_s + ramp_s, callers=CALLERS // PROCESSES)
    peak = _ended_per_s(scene, from_s, from_s + peak_s)
    calm_cpu = _cpu_s(scene) - before
    asked_per_s = sum(told["sent"] for told in calm) / (peak_s + ramp_s)
    scene.load.await_ends(_WAIT_S)
    _rewrite_log(scene)
    before = _cpu_s(scene)
    start_s = time.monotonic()
    from_s = start_s + ramp_s
    strike.struck_s = start_s
    per_s = TIMES * asked_per_s / PROCESSES
    wild = clients.run("wild", flood_s + ramp_s, per_s=per_s, connections=most)
    goodput = _ended_per_s(scene, from_s, from_s + flood_s)
    wild_cpu = _cpu_s(scene) - before
    took_s = time.monotonic() - start_s
    figures = _figures(wild)
    arrived = figures["sent"] + figures["repeated"] + figures["unsent"]
    unknown = {key: sent_s for one in (*calm, *wild) for key, sent_s in one["unknown"]}
    strike.notes |= {
        "tasks_per_request": TASKS,
        "peak_tasks_per_s": peak,
        "peak_requests_per_s": asked_per_s,
        "peak_slowest_answer_s": max(one["slowest_s"] for one in calm),
        "peak_refused": sum(one["statuses"].get("429", 0) for one in calm),
        "goodput_tasks_per_s": goodput,
        "goodput_share": goodput / peak if peak else 0.0,
        "offered_times": arrived / (flood_s + ramp_s) / asked_per_s if asked_per_s else 0.0,
        "repeat_share": figures["repeated"] / max(1, figures["sent"] + figures["repeated"]),
        "unknown": len(unknown),
        "peak_gateway_cores": calm_cpu / (peak_s + ramp_s),
        "gateway_cores": wild_cpu / took_s,
        "generator_cores": sum(one["cpu_s"] for one in wild) / took_s,
        **figures,
    }
    bare = sum(told["bare"] for told in (*calm, *wild))
    strike.demand(bare == 0, f"{bare} refusals name no time to come back")
    strike.demand(goodput > 0, "nothing was done meanwhile")
    return unknown


def _rewrite_log(scene: Scene) -> None:
    """Redis writes its log anew each time it has doubled, and takes half a core for some seconds:
    by chance in one of the windows, in the other or in none. So it does before each of them, and
    then not within."""
    with scene.cluster.redis() as redis:

        def idle() -> bool:
            shown = redis.info("persistence")
            waiting = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
            return all(shown[name] == "0" for name in waiting)

        # A second one beside the first would be refused.
        until(idle, "the end of an earlier rewriting", _REWRITTEN_WITHIN_S)
        redis("BGREWRITEAOF")
        until(idle, "the end of Redis' rewriting of its log", _REWRITTEN_WITHIN_S)


def _figures(told: list[dict[str, Any]]) -> dict[str, float]:
    """Of all client processes together."""
    sums: Counter[str] = Counter()
    for one in told:
        sums.update({name: one[name] for name in ("sent", "repeated", "unsent")})
        sums.update({f"answers_{status}": count for status, count in one["statuses"].items()})
    taken = [one["slowest_taken_s"] for one in told]
    return {
        **sums,
        "slowest_answer_s": max(one["slowest_s"] for one in told),
        "slowest_taken_s": max(taken),
    }


def _demand_figures(strike: Strike) -> None:
    notes = strike.notes
    offered, share, repeats = (
        notes[name] for name in ("offered_times", "goodput_share", "repeat_share")
    )
    strike.demand(offered >= LEAST_OFFERED, f"clients sent only {offered:.1f} times the peak")
    strike.demand(share >= LEAST_GOODPUT, f"goodput was {share:.0%} of the peak")
    strike.demand(repeats <= MOST_REPEATS, f"{repeats:.0%} of all requests were repeats")


def _cpu_s(scene: Scene) -> float:
    """Processor time of the gateway so far."""
    process = scene.cluster.process("gateway")
    if process is None:
        raise LookupError("the gateway is gone")
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True, slots=True)
class Clients:
    """Client processes on `cores`."""

    scene: Scene
    cores: list[int]

    def run(self, name: str, seconds: float, **how: float) -> list[dict[str, Any]]:
        """What all of them tell; what they were promised is in the journal then."""
        load, cluster = self.scene.load, self.scene.cluster
        address = urlsplit(cluster.url)
        clients = []
        for number in range(PROCESSES):
            spec = {
                "host": address.hostname,
                "port": address.port,
                "api_key": cluster.api_key,
                "run": load.run,
                "side": str(load.side.path),
                "name": f"{load.run}-{name}{number}",
                "tasks": TASKS,
                "seconds": seconds,
                **how,
            }
            client = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.oracle.flood", json.dumps(spec)],
                stdout=subprocess.PIPE,
                cwd=_ROOT,
            )
            os.sched_setaffinity(client.pid, self.cores)
            clients.append(client)
        told = [json.loads(client.communicate(timeout=seconds + _WAIT_S)[0]) for client in clients]
        for one in told:
            for key, ids, sent_s, acked_s in one["accepted"]:
                load.journal.note(Acknowledged(key, tuple(ids), sent_s, acked_s))
        return told


def _await_drained(scene: Scene) -> None:
    """Until no task is open, whoever knows of it; raises AssertionError when that takes long."""
    rest = scene.cluster.rest()

    def drained() -> bool:
        states = rest.get("/v1/cluster")["tasks"] or {}
        return not any(count for state, count in states.items() if state not in ENDED_STATES)

    until(drained, "the end of all tasks", _DRAINED_WITHIN_S)
    rest.close()


def _settle(scene: Scene, strike: Strike, books: Books, unknown: Mapping[str, float]) -> None:
    """Of a submission that was never answered there are all tasks or none; those that are there
    count as promised. `unknown`: when each was sent, by its key."""
    found: dict[str, list[str]] = defaultdict(list)
    for record in books.records.values():
        if record.request in unknown:
            found[record.request].append(record.id)
    for key, ids in found.items():
        strike.demand(len(ids) == TASKS, f"{len(ids)} of {TASKS} tasks of {key} are there")
        scene.load.journal.note(Acknowledged(key, tuple(ids), unknown[key], time.monotonic()))
    strike.notes["unknown_taken"] = len(found)


def _ended_per_s(scene: Scene, from_s: float, to_s: float) -> float:
    marks = scene.load.side.read()
    return sum(m.phase == "end" and from_s <= m.at_s < to_s for m in marks) / (to_s - from_s)


def _confine(scene: Scene, cores: list[int]) -> None:
    """Every thread of the cluster, and what it starts from now on."""
    for process in scene.cluster.processes():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cores)
