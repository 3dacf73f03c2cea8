"""Faults 6, 7, 9, 31 and 33: agents and their processes, killed, paused, poisoned, drained."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress

import psutil

from benchmarks.oracle.books import Mark
from benchmarks.oracle.checker import Expectation
from benchmarks.oracle.cluster import BACK_WITHIN_S, alive, until
from benchmarks.oracle.load import Shape
from benchmarks.oracle.scene import Books, Ground, Limits, Scene, Strike

# Children of a killed process are killed by the kernel and by sweeps; the last one comes 1 s on.
# On a machine that stalls they take their time; by themselves they would live for minutes.
CHILDREN_GONE_S = 30.0
# From the decision until the tasks of a lost agent run again.
AGAIN_S = 2.0
AGENT_TTL_S = 10.0
# An embedded agent has 3 s to drain.
DRAIN_S, DRAIN_SHORT_S = 3.0, 1.0
POISON_DEATHS = 3
# Longer than from giving up a frozen agent to waking it up, shorter than it was frozen.
SLOW_S, SLOW_SHORT_S = 24.0, 8.0
# An execution that began so lately runs on while its process is looked up.
FRESH_S = 0.02
_END_WITHIN_S = 90.0


class AgentFault(Ground):
    """A fault of one agent, whose tasks go to others."""

    number = ""
    name = ""
    limits = Limits()

    def shape(self, tasks: int, short: bool) -> Shape:  # noqa: ARG002 -- others take it
        return Shape(tasks)

    def strike(self, scene: Scene) -> Strike:
        raise NotImplementedError

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        """Detection: the first event that gives the agent up. Recovery: for each task that ran
        there, until it ran again."""
        for agent in strike.expectation.harmed:
            states = ("DOWN", "JOINING", "RESTARTING", "DRAINING", "LEFT", "READY")
            seen = books.first_agent_change(agent, states, strike.struck_s - 0.01)
            strike.demand(seen is not None, f"no event says that {agent} was lost")
            if seen is not None:
                strike.detections_s.append(max(0.0, seen.at_s - strike.struck_s))
            suspected = books.first_agent_change(agent, ("SUSPECT",), strike.struck_s - 0.01)
            if suspected is not None and (seen is None or suspected.at_s <= seen.at_s):
                strike.notes["suspected_s"] = max(0.0, suspected.at_s - strike.struck_s)
        harmed = sorted(strike.expectation.harmed)
        strike.recoveries_s += books.resumed_s(harmed, strike.struck_s)
        strike.notes |= books.resumed_after(harmed, strike.struck_s, scene.stop_tasks())


def busy_agent(scene: Scene) -> str:
    """A seeded agent that runs something now."""
    ident = scene.chance.choice(scene.cluster.agent_ids)

    def runs() -> bool:
        pids = {mark.pid for mark in scene.load.side.running().values()}
        return any(process.pid in pids for process in scene.cluster.tree(ident))

    until(runs, f"a task on {ident}", BACK_WITHIN_S)
    return ident


def _await_gone(strike: Strike, processes: list[psutil.Process]) -> None:
    """Demands that none of the killed process's descendants lives on."""
    give_up_s = strike.struck_s + CHILDREN_GONE_S
    while (left := alive(processes)) and time.monotonic() < give_up_s:
        time.sleep(0.01)
    strike.notes["children_gone_s"] = time.monotonic() - strike.struck_s
    strike.notes["children"] = len(processes)
    strike.demand(not left, f"{len(left)} of {len(processes)} children live on")


class RuntimeKilled(AgentFault):
    """Fault 6, an agent's runtime: the supervisor's word."""

    number = "6a"
    name = "kill -9 agent runtime"
    limits = Limits(detection_s=1.0, again_s=AGAIN_S, also="its children are gone")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        ident = busy_agent(scene)
        runtime = scene.cluster.runtime(ident)
        below = runtime.children(recursive=True)
        struck_s = time.monotonic()
        os.kill(runtime.pid, signal.SIGKILL)
        strike = Strike(struck_s, struck_s, Expectation(frozenset({ident}), deaths=True))
        _await_gone(strike, [runtime, *below])
        return strike


class AgentKilled(AgentFault):
    """Fault 6, a whole agent; with most seeds it stays away until it has been given up."""

    number = "6b"
    name = "kill -9 whole agent"
    limits = Limits(
        detection_s=13.0, again_s=AGAIN_S, suspected_s=3.0, also="its children are gone"
    )

    def shape(self, tasks: int, short: bool) -> Shape:
        # `stop` tasks wait 13 s before they are given to others.
        return Shape(tasks, stop=not short)

    def strike(self, scene: Scene) -> Strike:
        cluster = scene.cluster
        scene.await_moment()
        ident = busy_agent(scene)
        tree = cluster.tree(ident)
        away = not scene.short and scene.chance.random() < 0.7
        if away:
            cluster.hold(ident)
        struck_s = time.monotonic()
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        strike = Strike(struck_s, struck_s, Expectation(frozenset({ident}), deaths=True))
        _await_gone(strike, tree)
        try:
            if away:
                states = cluster.agent_states
                until(lambda: states().get(ident) == "DOWN", f"{ident} DOWN", BACK_WITHIN_S)
        finally:
            cluster.release(ident)
        strike.notes["stayed_away"] = float(away)
        return strike


class RunnerKilled(AgentFault):
    """Fault 7: as the kernel does it when memory runs out."""

    number = "7"
    name = "kill -9 runners"
    limits = Limits(also="one attempt charged, the agent lives")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment(latest=0.3)
        strike = Strike(time.monotonic())
        supervisors = {scene.cluster.pid(ident): ident for ident in scene.cluster.agent_ids}
        harmed: set[str] = set()
        kinds = ("work", "wait") if scene.short else ("work", "wait", "work", "work")
        for kind in kinds:
            harmed.add(_kill_one(scene, kind, supervisors, strike))
            time.sleep(0.05)
        strike.healed_s = time.monotonic()
        strike.expectation = Expectation(frozenset(harmed), failures=len(strike.victims))
        return strike

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:  # noqa: ARG002
        """Detection: until the task is taken from its attempt; recovery: until it runs again."""
        done = {(m.task, m.attempt) for m in books.marks if m.phase == "end"}
        least = sum(key not in done for key in _alone(strike, books))
        charged = sum(record.failures for record in books.records.values())
        strike.demand(charged >= least, f"{least} attempts died, {charged} were charged")
        for at_s, task, attempt in strike.victims:
            left = [
                e.at_s - at_s
                for e in books.events
                if e.task == task
                and e.at_s >= at_s
                and (e.attempt > attempt or e.state == "PENDING")
            ]
            again = [
                m.at_s - at_s
                for m in books.marks
                if m.task == task and m.phase == "begin" and m.attempt > attempt
            ]
            strike.detections_s += left[:1]
            strike.recoveries_s += again[:1]
        for event in books.events:
            lives = event.agent_state not in ("DOWN", "RESTARTING", "JOINING", "LEFT")
            strike.demand(lives, f"{event.agent} became {event.agent_state}")


def _alone(strike: Strike, books: Books) -> list[tuple[str, int]]:
    """The killed executions that had a process of their own."""
    tokens = {(m.task, m.attempt): m.token for m in books.marks}
    return [
        (task, attempt)
        for _, task, attempt in strike.victims
        if tokens[task, attempt].startswith("work")
    ]


def _kill_one(scene: Scene, kind: str, supervisors: dict[int, str], strike: Strike) -> str:
    """Kills the process of an execution that has just begun; gives its agent."""

    def find() -> tuple[Mark, str] | None:
        for mark in scene.load.side.running().values():
            if not mark.token.startswith(kind) or time.monotonic() - mark.at_s > FRESH_S:
                continue
            with suppress(psutil.NoSuchProcess):
                for parent in psutil.Process(mark.pid).parents():
                    if parent.pid in supervisors:
                        return mark, supervisors[parent.pid]
        return None

    mark, ident = until(find, f"a {kind} task that has just begun", BACK_WITHIN_S)
    strike.victims.append((time.monotonic(), mark.task, mark.attempt))
    with suppress(ProcessLookupError):
        os.kill(mark.pid, signal.SIGKILL)
    return str(ident)


class AgentPaused(AgentFault):
    """Fault 9: frozen until long after it was given up; what it says then is late.

    Without `stop` tasks: nobody on a frozen machine can keep a frozen process from going on for
    the moment before its supervisor looks at the clock.
    """

    number = "9"
    name = "SIGSTOP agent 3×TTL, then CONT"
    limits = Limits(detection_s=13.0, again_s=AGAIN_S, also="its late outcomes are fenced")

    def shape(self, tasks: int, short: bool) -> Shape:  # noqa: ARG002
        return Shape(tasks, stop=False)

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment()
        ident = self._agent_with_slow_tasks(scene)
        struck_s = time.monotonic()
        stopped = scene.cluster.pause(ident)
        strike = Strike(struck_s, 0.0, Expectation(frozenset({ident}), deaths=True))
        try:
            states = scene.cluster.agent_states
            until(lambda: states().get(ident) == "DOWN", f"{ident} DOWN", BACK_WITHIN_S)
            # Its other tasks have been given away and done; the slow ones run elsewhere.
            pause_s = 0.0 if scene.short else 3 * AGENT_TTL_S
            time.sleep(max(0.5, struck_s + pause_s - time.monotonic()))
        finally:
            strike.healed_s = time.monotonic()
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()
        return strike

    def _agent_with_slow_tasks(self, scene: Scene) -> str:
        """An agent that runs some of those tasks that are late and open when it wakes up."""
        slow_s = SLOW_SHORT_S if scene.short else SLOW_S
        kinds = ("work", "wait") * 6
        slow = set(
            scene.load.submit([scene.load.task(k, slow_s * 1e3, priority=100) for k in kinds])
        )

        def begun() -> set[int]:
            running = scene.load.side.running()
            pids = {mark.pid for (task, _), mark in running.items() if task in slow}
            return pids if sum(task in slow for task, _ in running) == len(slow) else set()

        pids: set[int] = until(begun, "slow tasks", BACK_WITHIN_S)
        holders = [
            ident
            for ident in scene.cluster.agent_ids
            if any(process.pid in pids for process in scene.cluster.tree(ident))
        ]
        return scene.chance.choice(holders)

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:
        for agent in strike.expectation.harmed:
            seen = books.first_agent_change(agent, ("DOWN",), strike.struck_s)
            strike.demand(seen is not None, f"{agent} was not given up")
            if seen is not None:
                strike.detections_s.append(seen.at_s - strike.struck_s)
            suspected = books.first_agent_change(agent, ("SUSPECT",), strike.struck_s - 0.01)
            if suspected is not None and (seen is None or suspected.at_s <= seen.at_s):
                strike.notes["suspected_s"] = max(0.0, suspected.at_s - strike.struck_s)
        harmed = sorted(strike.expectation.harmed)
        strike.recoveries_s += books.resumed_s(harmed, strike.struck_s)
        strike.notes |= books.resumed_after(harmed, strike.struck_s, scene.stop_tasks())
        ends = {(m.task, m.attempt): m.at_s for m in books.marks if m.phase == "end"}
        last = {r.id: ends.get((r.id, r.attempt), 0.0) for r in books.records.values()}
        late = [
            last[task] > at_s
            for (task, attempt), at_s in ends.items()
            if at_s >= strike.healed_s and task in last and attempt < books.records[task].attempt
        ]
        strike.notes["late_ends"], strike.notes["late_and_open"] = len(late), sum(late)
        strike.demand(any(late), "no execution ended late while a later one ran")


class Poison(AgentFault):
    """Fault 31: a task that kills the runtime of whoever runs it."""

    number = "31"
    name = "poison task"
    limits = Limits(also="DEAD after 3, others unharmed")

    def strike(self, scene: Scene) -> Strike:
        scene.await_moment(latest=0.3)
        strike = Strike(time.monotonic())
        count = 1 if scene.short else 2
        for _ in range(count):
            sent_s = time.monotonic()
            (ident,) = scene.load.submit(
                [scene.load.task("poison", 0, priority=100)], expected=("DEAD",)
            )
            strike.victims.append((sent_s, ident, POISON_DEATHS))
        rest = scene.cluster.rest()
        for _, ident, _ in strike.victims:
            give_up_s = time.monotonic() + _END_WITHIN_S
            while rest.get(f"/v1/tasks/{ident}")["state"] in ("PENDING", "ASSIGNED", "RUNNING"):
                if time.monotonic() > give_up_s:
                    strike.problems.append(f"{ident} is still alive")
                    break
                time.sleep(0.05)
        rest.close()
        strike.healed_s = time.monotonic()
        return strike

    def judge(self, scene: Scene, strike: Strike, books: Books) -> None:  # noqa: ARG002
        """Detection: from its submission until it is DEAD; recovery: others, until they ran
        again."""
        harmed: set[str] = set()
        for sent_s, ident, deaths in strike.victims:
            record, agents = books.records[ident], books.agents_of(ident)
            harmed |= set(agents.values())
            fatal = (record.agent_deaths, record.failures) == (deaths, 0)
            strike.demand(
                fatal, f"{ident}: {record.agent_deaths} deaths, {record.failures} failures"
            )
            dead = [e.at_s for e in books.events if e.task == ident and e.state == "DEAD"]
            strike.detections_s += [at_s - sent_s for at_s in dead[:1]]
            for mark in books.marks:
                if mark.task == ident and mark.attempt in agents:
                    agent = agents[mark.attempt]
                    strike.recoveries_s += books.resumed_s([agent], mark.at_s + 0.001)
        strike.expectation = Expectation(frozenset(harmed), deaths=True)


class AgentDrained(AgentFault):
    """Fault 33: some of its tasks end within the drain, others are given back."""

    number = "33"
    name = "SIGTERM drain of an agent"
    limits = Limits(also="0 attempts charged, exit code 0")

    def strike(self, scene: Scene) -> Strike:
        cluster, load = scene.cluster, scene.load
        ident = f"leaver-{load.run}"
        drain_s = DRAIN_SHORT_S if scene.short else DRAIN_S
        leaver = cluster.start_agent_like(
            cluster.agent_ids[0], ident, {"MUSTER_AGENT_DRAIN_S": f"{drain_s:g}"}
        )
        states = cluster.agent_states
        until(lambda: states().get(ident) == "READY", f"{ident} READY", BACK_WITHIN_S)
        long_ms = drain_s * 1000 + 700
        slow = [load.task(k, long_ms, priority=100) for k in ("work", "wait") * 6]
        load.submit(slow)
        load.submit([load.task("work", scene.chance.uniform(100, 200)) for _ in range(100)])
        tree = psutil.Process(leaver.pid)

        def busy() -> bool:
            pids = {mark.pid for mark in load.side.running().values()}
            return any(child.pid in pids for child in tree.children(recursive=True))

        until(busy, f"a task on {ident}", BACK_WITHIN_S)
        time.sleep(scene.chance.uniform(0.0, 0.3))
        below = tree.children(recursive=True)
        struck_s = time.monotonic()
        leaver.terminate()
        strike = Strike(struck_s, struck_s, Expectation(frozenset({ident})))
        try:
            code = leaver.wait(BACK_WITHIN_S)
        except subprocess.TimeoutExpired:
            code = -1
        strike.notes["drain_s"] = time.monotonic() - struck_s
        strike.demand(code == 0, f"it ended with exit code {code}")
        strike.demand(not alive(below), "children live on")
        return strike
