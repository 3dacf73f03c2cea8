"""The shared view: whatever a watcher missed, it ends with what the view holds."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from muster.domain.agent import AgentRecord, AgentSpec
from muster.domain.ids import AgentId
from muster.domain.resources import ResourceVector
from muster_registry.agent_view import AgentView, Member, Position, Update


def member(agent: str, revision: int, incarnation: int = 1) -> Member:
    spec = AgentSpec(AgentId(agent), ResourceVector.of({"slots": 1}))
    return Member(AgentRecord(spec, incarnation, 7, 0, revision), b"hash")


def names(update: Update) -> list[str]:
    return [record.spec.id for record in update.agents]


def test_nothing_is_known_before_the_first_snapshot() -> None:
    view = AgentView()
    assert not view.known
    assert view.position_of(0) is None
    view.replace([], 5)
    assert view.known
    assert view.snapshot() == Update(True, Position(1, 5), (), ())


def test_changes_since_a_position_are_the_newest_of_each_agent() -> None:
    view = AgentView()
    view.replace([member("a", 2), member("b", 3)], 3)
    start = view.snapshot().position
    view.put(member("c", 4))
    view.put(member("a", 5, incarnation=2))
    view.remove(AgentId("b"), 6)
    view.put(member("a", 7, incarnation=3))
    update = view.since(start)
    assert not update.snapshot
    assert [(r.spec.id, r.incarnation) for r in update.agents] == [("c", 1), ("a", 3)]
    assert update.removed == ("b",)
    assert update.position.revision == 7
    assert view.since(update.position).empty


def test_two_changes_of_one_revision_are_both_told() -> None:
    view = AgentView()
    view.replace([member("a", 2), member("b", 2)], 2)
    start = view.snapshot().position
    # A lease that held both keys expired.
    view.remove(AgentId("a"), 3)
    view.remove(AgentId("b"), 3)
    assert view.since(start).removed == ("a", "b")


def test_who_is_further_behind_than_history_gets_a_snapshot() -> None:
    view = AgentView(history=3)
    view.replace([], 1)
    start = view.snapshot().position
    for revision in range(2, 5):
        view.put(member(f"a{revision}", revision))
    assert not view.since(start).snapshot
    view.put(member("a5", 5))
    assert view.since(start).snapshot
    assert view.position_of(1) is None
    assert view.position_of(2) is not None
    assert names(view.since(Position(1, 2))) == ["a3", "a4", "a5"]


def test_a_new_snapshot_from_etcd_reaches_every_watcher() -> None:
    view = AgentView()
    view.replace([member("a", 2)], 2)
    start = view.snapshot().position
    view.replace([member("b", 9)], 9)
    update = view.since(start)
    assert update.snapshot
    assert names(update) == ["b"]


def test_a_watcher_resumes_only_where_its_revision_means_the_same() -> None:
    view = AgentView()
    view.replace([member("a", 40)], 50)
    assert view.position_of(50) is not None
    assert view.position_of(49) is None
    assert view.position_of(51) is None
    # etcd was emptied: its revisions begin anew and may pass the old ones.
    view.replace([], 3)
    for revision in range(4, 70):
        view.put(member("b", revision))
    assert view.position_of(45) is None
    assert view.position_of(50) is None
    assert view.position_of(51) is not None


class Watching(RuleBasedStateMachine):
    """A view with a short history, and a watcher that looks now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.view = AgentView(history=4)
        self.view.replace([], 1)
        self.revision = 1
        self.told: dict[str, AgentRecord] = {}
        self.position = self.view.snapshot().position

    agents = st.sampled_from(["a", "b", "c"])

    @rule(agent=agents)
    def put(self, agent: str) -> None:
        self.revision += 1
        self.view.put(member(agent, self.revision, incarnation=self.revision))

    @rule(agent=agents)
    def remove(self, agent: str) -> None:
        self.revision += 1
        self.view.remove(AgentId(agent), self.revision)

    @rule(agents=st.sets(agents), revision=st.integers(1, 30))
    def begin_anew(self, agents: set[str], revision: int) -> None:
        self.revision = revision
        self.view.replace([member(agent, revision) for agent in agents], revision)

    @rule()
    def look(self) -> None:
        update = self.view.since(self.position)
        if update.snapshot:
            self.told.clear()
        self.told.update({str(r.spec.id): r for r in update.agents})
        for agent in update.removed:
            self.told.pop(agent, None)
        self.position = update.position
        assert self.told == {str(r.spec.id): r for r in self.view.snapshot().agents}

    @invariant()
    def holds_no_more_than_it_may(self) -> None:
        assert len(self.view._history) <= 4


TestWatching = Watching.TestCase
TestWatching.settings = settings(max_examples=100, stateful_step_count=30)
