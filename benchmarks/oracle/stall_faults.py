"""Faults 13, 24, 26 and 29: what stalls or tells the wrong time, and must not be taken for dead."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from benchmarks.oracle.agent_faults import busy_agent
from benchmarks.oracle.checker import Expectation
from benchmarks.oracle.cluster import BACK_WITHIN_S, SCHEDULERS, until
from benchmarks.oracle.load import Load, Shape
from benchmarks.oracle.rest import Refused
from benchmarks.oracle.scene import Books, Limits, Scene, Strike
from benchmarks.oracle.service_faults import LEADER_TTL_S, TAKEOVER_S, ServiceFault

BLOCKED_S = 5.0
# After its lease cannot be valid any more a leader places nothing; its last decisions are on their
# way to storage for a moment.
PLACED_UNTIL_S = LEADER_TTL_S + 1.0
LEADERLESS_S, LEADERLESS_SHORT_S = 12.0, 6.0
_SLOW_MS, _SLOW_SHORT_MS = 8_000, 5_000
# The longest chain of deadlines behind one request is some 15 s; on a machine that stalls more.
ANSWERED_WITHIN_S = 30.0
_BLACKHOLE_S, _BLACKHOLE_SHORT_S = 20.0, 0.0
HOUR_S = 3_600.0


class LoopBlocked(ServiceFault):
    """Fault 13: the runtime alone stands still, its session open, its supervisor at work."""

    number = "13"
    name = "agent's loop blocked 5 s"
    limits = Limits(also="no false death")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        ident = busy_agent(scene)
        runtime = scene.cluster.runtime(ident)
        strike = Strike(time.monotonic())
        runtime.suspend()
        try:
            time.sleep(BLOCKED_S)
        finally:
            runtime.resume()
        strike.healed_s = time.monotonic()
        strike.notes["blocked_s"] = strike.healed_s - strike.struck_s
        strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        strike.demand(runtime.is_running(), "the runtime was ended")
        return strike


class LeaderWithoutEtcd(ServiceFault):
    """Fault 24: first nobody can take the term, then the standby can."""

    number = "24"
    name = "scheduler cut from etcd"
    limits = Limits(
        detection_s=TAKEOVER_S + LEADER_TTL_S, also="places nothing new, steps down for another"
    )
    proxied = True

    def strike(self, scene: Scene) -> Strike:
        cluster, load = scene.cluster, scene.load
        scene.await_moment(latest=0.3)
        leader: str = until(cluster.leader, "a leader", BACK_WITHIN_S)
        (other,) = (name for name in SCHEDULERS if name != leader)
        ms = _SLOW_SHORT_MS if scene.short else _SLOW_MS
        slow = load.submit([load.task(kind, ms, priority=100) for kind in ("work", "wait") * 3])
        until(lambda: _all_run(load, slow), "slow tasks", BACK_WITHIN_S)
        links = {name: cluster.proxies[f"etcd@{name}"] for name in SCHEDULERS}
        strike = Strike(time.monotonic())
        try:
            for link in links.values():
                link.part()
            time.sleep(LEADERLESS_SHORT_S if scene.short else LEADERLESS_S)
            # What a leader without etcd still does.
            load.side.read()
            done = sum(load.side.first_end_s(task) is not None for task in slow)
            strike.demand(done == len(slow), f"{done} of {len(slow)} running tasks were done")
            strike.healed_s = time.monotonic()
            links[other].heal()
            until(lambda: cluster.leader() == other, f"{other} leads", BACK_WITHIN_S)
            metrics = cluster.metrics
            until(
                lambda: metrics(leader).get("muster_scheduler_leader") == 0.0,
                f"{leader} steps down",
                BACK_WITHIN_S,
            )
            strike.recoveries_s.append(scene.first_end_after_s(strike.healed_s))
        finally:
            for link in links.values():
                link.heal()
        return strike

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:  # noqa: ARG002
        """Detection: from when the standby can until it has its term."""
        taken = [e.at_s for e in books.events if e.leader and e.at_s >= strike.struck_s]
        strike.demand(len(taken) == 1, f"{len(taken)} leaders took over")
        strike.detections_s += [max(0.0, at_s - strike.healed_s) for at_s in taken[:1]]
        from_s = strike.struck_s + PLACED_UNTIL_S
        placed = [
            event
            for event in books.events
            if event.state == "ASSIGNED" and from_s < event.at_s < strike.healed_s
        ]
        strike.demand(not placed, f"{len(placed)} tasks were placed without etcd")


def _all_run(load: Load, tasks: list[str]) -> bool:
    running = {task for task, _ in load.side.running()}
    return all(task in running for task in tasks)


@dataclass(slots=True)
class _Asked:
    """Requests of one kind: when each was sent and answered."""

    answered: list[tuple[float, float]] = field(default_factory=list)
    sent_s: float = 0.0


class Blackhole(ServiceFault):
    """Fault 26: connections stay open and carry nothing, on each kind of link in turn."""

    number = "26"
    name = "half-open blackhole"
    limits = Limits(also="every request is answered by its deadline")
    proxied = True

    def shape(self, tasks: int, short: bool) -> Shape:  # noqa: ARG002
        # Leaders that cannot be heard or cannot confirm their term answer no beats.
        return Shape(tasks, stop=False)

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment(latest=0.2)
        links = [["storage"], list(SCHEDULERS)]
        scene.chance.shuffle(links)
        strike = Strike(time.monotonic())
        for names in links[:1] if scene.short else links:
            self._part(scene, strike, names)
            strike.recoveries_s.append(scene.first_end_after_s(time.monotonic()))
        strike.healed_s = time.monotonic()
        return strike

    def _part(self, scene: Scene, strike: Strike, names: list[str]) -> None:
        """Until requests of each kind were sent and answered meanwhile, and for some time."""
        known = scene.load.journal.ids()[0]
        kinds = {
            "read": lambda rest: rest.call("GET", f"/v1/tasks/{known}"),
            "agents": lambda rest: rest.call("GET", "/v1/agents"),
            "cancel": lambda rest: rest.call("POST", "/v1/tasks/no-such-task/cancel", b"{}"),
        }
        asked = {kind: _Asked() for kind in kinds}
        over = threading.Event()

        def ask(kind: str) -> None:
            rest = scene.cluster.rest(timeout_s=2 * ANSWERED_WITHIN_S)
            book = asked[kind]
            while not over.is_set():
                book.sent_s = time.monotonic()
                try:
                    kinds[kind](rest)
                except Refused as refused:
                    if refused.status == 0:
                        strike.problems.append(f"{kind} was not answered: {refused}")
                book.answered.append((book.sent_s, time.monotonic()))
                time.sleep(0.05)
            rest.close()

        threads = [threading.Thread(target=ask, args=(kind,)) for kind in kinds]
        from_s = time.monotonic()
        for name in names:
            scene.cluster.proxies[name].part()
        for thread in threads:
            thread.start()
        try:
            until(
                lambda: all(book.answered for book in asked.values()),
                "answers in the blackhole",
                2 * ANSWERED_WITHIN_S,
            )
            least_s = _BLACKHOLE_SHORT_S if scene.short else _BLACKHOLE_S
            time.sleep(max(0.0, from_s + least_s - time.monotonic()))
        finally:
            over.set()
            for thread in threads:
                thread.join(2 * ANSWERED_WITHIN_S)
            for name in names:
                scene.cluster.proxies[name].heal()
        took_s = [end_s - sent_s for book in asked.values() for sent_s, end_s in book.answered]
        strike.notes[f"longest_answer_s {names[0]}"] = max(took_s)
        strike.notes[f"answers {names[0]}"] = len(took_s)
        strike.detections_s.append(max(took_s))
        late = max(took_s) > ANSWERED_WITHIN_S
        strike.demand(not late, f"{names}: an answer took {max(took_s):.1f} s")


class ClockJumps(ServiceFault):
    """Fault 29: an hour ahead, then an hour behind, of all, of services or of agents."""

    number = "29"
    name = "wall clock ±1 h"
    limits = Limits(also="no expiry, no early timeout")
    clocked = True

    def strike(self, scene: Scene) -> Strike:
        cluster, load = scene.cluster, scene.load
        clock = cluster.clock
        assert clock is not None
        scene.await_moment(latest=0.3)
        # One must not time out, one must, and as soon as ever.
        ms = 3_000 if scene.short else 12_000
        calm = load.submit([load.task("work", ms, timeout="10m", priority=100) for _ in range(2)])
        doomed = load.submit(
            [load.task("work", 120_000, timeout=f"{ms // 1000}s", priority=100, max_attempts=1)],
            expected=("TIMED_OUT",),
        )
        until(lambda: _all_run(load, [*calm, *doomed]), "slow tasks", BACK_WITHIN_S)
        strike = Strike(time.monotonic(), 0.0, Expectation(failures=1))
        whose: tuple[str, ...] = scene.chance.choice(
            [(), tuple(n for n in clock.names if n not in cluster.agent_ids), cluster.agent_ids]
        )
        strike.notes["clocks_wrong"] = len(whose or clock.names)
        try:
            for hours in scene.chance.sample((1.0, -1.0), 2):
                clock.set_off(hours * HOUR_S, *whose)
                time.sleep(2.0 if scene.short else ms / 1000)
                strike.recoveries_s.append(scene.first_end_after_s(time.monotonic()))
            rest = cluster.rest()
            begun_s = time.monotonic()
            until(
                lambda: rest.get(f"/v1/tasks/{doomed[0]}")["state"] == "TIMED_OUT",
                "the timeout",
                BACK_WITHIN_S,
            )
            strike.notes["timeout_waited_for_s"] = time.monotonic() - begun_s
            rest.close()
        finally:
            clock.set_off(0.0)
        strike.healed_s = time.monotonic()
        return strike

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        """The events' times are of the clocks that were wrong."""
        off_s = [abs(event.at_s - strike.struck_s) for event in books.events]
        wrong = strike.notes["clocks_wrong"] != len(scene.cluster.agent_ids)
        strike.demand(not wrong or max(off_s) > HOUR_S / 2, "no clock jumped")
