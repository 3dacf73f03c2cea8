"""Many agents that fall silent together are not given up; few, or one by one, are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scheduler.core_bench import Bench

from muster.domain.agent_lifecycle import AgentState
from muster.domain.ids import AgentId
from muster.domain.mass_failure import LEAST_SILENT, MASS_SHARE, OVER_SHARE
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents
from muster_scheduler.core.agents import SILENT_AND_LEASELESS_MS, SILENT_MS
from muster_scheduler.core.mass_failure import TOGETHER_MS, WHOLE_CLUSTER, MassFailure, Seen
from muster_scheduler.core.overdue import UNSTARTED_MS


def seen(*since: int | None, zones: str = "") -> list[Seen]:
    """Agents silent since these times; `zones` has a letter for each, a blank for none."""
    names = zones or " " * len(since)
    return [
        Seen(AgentId(f"a{number}"), zone.strip(), one)
        for number, (one, zone) in enumerate(zip(since, names, strict=True))
    ]


def test_sixty_percent_together_raise_it_and_it_ends_by_itself() -> None:
    guard = MassFailure()
    (alarm,) = guard.look(seen(1_000, 1_500, 2_000, None, None), 9_000)
    assert alarm.active
    assert alarm.why == (
        "3 of 5 agents fell silent within 8 s: none of them is given up for its silence"
    )
    assert guard.spares("any")
    assert guard.spares("")
    # Half of it is over the mark below which it ends.
    assert guard.look(seen(1_000, 1_500, 2_000, None, None), 900_000) == []
    (over,) = guard.look(seen(1_000, 1_500, None, None, None), 901_000)
    assert not over.active
    assert not guard.spares("any")


def test_half_is_not_enough_nor_are_two_of_two() -> None:
    guard = MassFailure()
    assert guard.look(seen(1, 1, 1, None, None, None), 9_000) == []
    assert guard.look(seen(1, 1), 9_000) == []


def test_those_that_failed_long_before_do_not_count() -> None:
    guard = MassFailure()
    now_ms = 10 * TOGETHER_MS
    assert guard.look(seen(1, 2, 3, now_ms - 7_000, None, None, None), now_ms) == []
    # Of the four that were there, three.
    (alarm,) = guard.look(seen(1, 2, now_ms, now_ms, now_ms, None), now_ms)
    assert "3 of 4" in alarm.why


def test_a_whole_zone_is_spared_alone() -> None:
    guard = MassFailure()
    those = seen(1, 1, 1, None, None, None, None, zones="xxxyyyy")
    (alarm,) = guard.look(those, 9_000)
    assert alarm.zone == "x"
    assert [guard.spares(zone) for zone in ("x", "y", "")] == [True, False, False]
    (over,) = guard.look(seen(None, None, 1, None, None, None, None, zones="xxxyyyy"), 9_500)
    assert (over.zone, over.active) == ("x", False)
    partly = seen(1, 1, 1, None, None, None, None, None, zones="xxxxyyyy")
    assert guard.look(partly, 9_000) == []


def test_a_zone_that_is_gone_ends_its_alarm() -> None:
    guard = MassFailure()
    guard.look(seen(1, 1, 1, None, None, None, None, zones="xxxyyyy"), 9_000)
    (over,) = guard.look(seen(None, None, zones="yy"), 10_000)
    assert (over.zone, over.active) == ("x", False)


@given(
    st.lists(
        st.lists(
            st.tuples(st.none() | st.integers(0, 200_000), st.sampled_from("xyz ")), max_size=12
        ),
        max_size=8,
    )
)
def test_alarms_alternate_and_agree_with_what_is_spared(
    rounds: list[list[tuple[int | None, str]]],
) -> None:
    guard = MassFailure()
    raised: set[str] = set()
    now_ms = 200_000
    for members in rounds:
        now_ms += 1_000
        those = seen(*[s for s, _ in members], zones="".join(z for _, z in members) or "")
        for alarm in guard.look(those, now_ms):
            assert (alarm.zone in raised) is not alarm.active
            (raised.add if alarm.active else raised.discard)(alarm.zone)
        assert raised == set(guard.zones)
        silent = [m for m in those if m.silent_since_ms is not None]
        if WHOLE_CLUSTER in raised:
            assert len(silent) > OVER_SHARE * len(those)
        if len(silent) < LEAST_SILENT and not raised:
            assert not guard.spares("x")
        lately = [m for m in silent if now_ms - (m.silent_since_ms or 0) <= TOGETHER_MS]
        there = len(those) - len(silent) + len(lately)
        if len(lately) >= max(LEAST_SILENT, MASS_SHARE * there):
            assert WHOLE_CLUSTER in raised


# ------------------------------------------------------------------- in the leader

FIVE = [AgentId(f"a{number}") for number in range(5)]


def five() -> Bench:
    bench = Bench()
    for agent in FIVE:
        bench.join(agent)
    return bench


def lose(bench: Bench, *gone: AgentId) -> None:
    for agent in gone:
        agents.unregistered(bench.state, agent, bench.now)


def test_nobody_is_given_up_while_most_are_silent_and_all_goes_on_after() -> None:
    bench = five()
    task = bench.run()
    victim = task.status.agent
    # The task's agent among the three that vanish.
    others = [a for a in FIVE if a != victim]
    gone, there = [victim, *others[:2]], others[2:]
    lose(bench, *gone)
    bench.silence(10 * SILENT_MS, *there)
    assert [bench.agent_state(a) for a in gone] == [AgentState.SUSPECT] * 3
    assert task.status.agent == victim
    assert task.status.state is not TaskState.PENDING
    assert [a.active for a in bench.alarms] == [True]
    # Two come back, so the third is given up as any other.
    for agent in gone[1:]:
        bench.join(agent)
    lose(bench, victim)
    bench.silence(SILENT_AND_LEASELESS_MS, *there, *gone[1:])
    assert [a.active for a in bench.alarms] == [True, False]
    assert bench.agent_state(victim) is AgentState.DOWN
    assert task.status.agent != victim


def test_the_supervisors_word_and_a_newer_incarnation_count_all_the_same() -> None:
    bench = five()
    lose(bench, *FIVE[:3])
    bench.silence(9_000, *FIVE[3:])
    assert [a.active for a in bench.alarms] == [True]
    agents.runtime_died(bench.state, FIVE[0], 1, [], True, "exit code 9", bench.now)
    assert bench.agent_state(FIVE[0]) is AgentState.DOWN
    bench.join(FIVE[1], 2)
    assert bench.agent_state(FIVE[1]) is AgentState.READY


def test_two_of_five_are_given_up() -> None:
    bench = five()
    lose(bench, *FIVE[:2])
    bench.silence(SILENT_AND_LEASELESS_MS, *FIVE[2:])
    assert [bench.agent_state(a) for a in FIVE[:2]] == [AgentState.DOWN] * 2
    assert bench.alarms == []


def test_who_is_heard_meanwhile_must_keep_its_word() -> None:
    bench = five()
    task = bench.admit()
    bench.settle()
    holder = task.status.agent
    others = [a for a in FIVE if a != holder]
    lose(bench, *others[:3])
    # It was given the task and does not begin it.
    bench.silence(UNSTARTED_MS + 2_000, holder, others[3])
    assert [a.active for a in bench.alarms] == [True]
    assert task.status.agent == others[3]
