"""What several monitors say of one agent, put together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muster.domain.ids import AgentId
from muster_scheduler.core.witnesses import Opinion, Witnesses, Word

A = AgentId("a")


def hears(incarnation: int = 1) -> Word:
    return Word(A, incarnation, suspected=False, heard=True)


def suspects(phi: float = 9.0) -> Word:
    return Word(A, 1, suspected=True, heard=True, phi=phi)


GONE = Word(A, 1, suspected=False, heard=False)
LIFTED = Opinion(A, 0, False, 0.0)


def test_one_monitor_is_believed() -> None:
    witnesses = Witnesses()
    assert witnesses.takes("m1", hears()) is None
    assert witnesses.takes("m1", suspects(8.5)) == Opinion(A, 1, True, 8.5)
    assert witnesses.takes("m1", hears()) == LIFTED


def test_the_silence_at_a_monitor_that_the_agent_has_left_says_nothing() -> None:
    witnesses = Witnesses()
    witnesses.takes("m1", hears())
    witnesses.takes("m2", hears())
    assert witnesses.takes("m1", suspects()) is None
    # It does not come back when the other one dies.
    assert witnesses.silent("m2") == []


def test_a_suspicion_ends_when_another_monitor_hears_the_agent() -> None:
    witnesses = Witnesses()
    assert witnesses.takes("m1", suspects()) is not None
    assert witnesses.takes("m2", hears()) == LIFTED
    assert witnesses.takes("m2", suspects()) == Opinion(A, 1, True, 9.0)
    assert witnesses.silent("m1") == []
    assert witnesses.silent("m2") == [LIFTED]


def test_a_death_after_a_move_is_believed_once_both_miss_the_agent() -> None:
    witnesses = Witnesses()
    witnesses.takes("m1", hears())
    witnesses.takes("m2", hears())
    assert witnesses.takes("m1", suspects()) is None
    assert witnesses.takes("m2", suspects()) == Opinion(A, 1, True, 9.0)


def test_a_monitor_that_forgets_an_agent_has_no_opinion() -> None:
    witnesses = Witnesses()
    witnesses.takes("m1", hears())
    witnesses.takes("m2", suspects())
    # The first one was heard, so the second was overruled; now nobody is left to overrule.
    assert witnesses.takes("m1", GONE) is None
    assert witnesses.takes("m2", suspects()) == Opinion(A, 1, True, 9.0)
    assert witnesses.takes("m2", GONE) == LIFTED


def test_a_snapshot_replaces_what_its_monitor_said() -> None:
    witnesses = Witnesses()
    b = AgentId("b")
    witnesses.all_of("m1", [suspects(), Word(b, 1, suspected=False, heard=True)])
    assert witnesses.all_of("m1", []) == [LIFTED]
    # `b` is heard by nobody any more.
    assert witnesses.takes("m2", Word(b, 1, True, True, 9.0)) is not None


WORDS = st.sampled_from([hears(), suspects(), GONE])
STEPS = st.lists(st.tuples(st.sampled_from(["m1", "m2", "m3"]), WORDS | st.none()), max_size=30)


@given(STEPS)
def test_the_leaders_belief_follows_from_the_opinions(steps: list[tuple[str, Word | None]]) -> None:
    witnesses = Witnesses()
    believed = False
    last: dict[str, Word] = {}
    for monitor, word in steps:
        if word is None:
            last.pop(monitor, None)
            opinions = witnesses.silent(monitor)
        else:
            last[monitor] = word
            opinions = [o for o in [witnesses.takes(monitor, word)] if o is not None]
        for opinion in opinions:
            believed = opinion.suspected
        alive = any(w.heard and not w.suspected for w in last.values())
        doubted = any(w.suspected for w in last.values())
        # Never suspected while a monitor hears it, nor when no monitor doubts it.
        assert not (believed and (alive or not doubted))
        if word is not None and word.suspected and not alive:
            assert believed
