"""Many agents silent together: one finding, and the single ones when it is over."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from muster_monitor.findings import Finding, Severity
from muster_monitor.mass_failure import AGENT_SUSPECTED, GATHER_MS, MASS_FAILURE, MassGuard

ZONES = {f"a{i}": "north" for i in range(6)} | {f"b{i}": "south" for i in range(4)}


class Cluster:
    """Looks each second; `standing` is what was told and not taken back."""

    def __init__(self, zones: dict[str, str] | None = None) -> None:
        self.guard = MassGuard()
        self.zones = zones if zones is not None else ZONES
        self.now_ms = 0
        self.standing: dict[tuple[str, tuple[tuple[str, str], ...]], Finding] = {}
        self.count = 0

    def look(self, *suspects: str, seconds: int = 1) -> list[Finding]:
        found = []
        for _ in range(seconds):
            self.now_ms += 1_000
            why = dict.fromkeys(suspects, "silent for 3 s")
            found += self.guard.look(why, self.zones, self.now_ms, 5)
        for finding in found:
            key = (finding.rule, tuple(sorted(finding.labels.items())))
            if finding.active:
                assert key not in self.standing
                self.standing[key] = finding
            else:
                assert key in self.standing
                del self.standing[key]
        return found

    def told(self) -> list[str]:
        return sorted(
            f.labels.get("agent", f.labels.get("zone", "all")) for f in self.standing.values()
        )


def test_one_suspect_is_told_after_a_moment_with_its_zone() -> None:
    cluster = Cluster()
    assert cluster.look("a1", seconds=2) == []
    (found,) = cluster.look("a1")
    assert (found.rule, found.severity) == (AGENT_SUSPECTED, Severity.WARNING)
    assert found.labels == {"agent": "a1", "zone": "north"}
    assert "silent for 3 s" in found.summary
    assert cluster.look("a1", seconds=10) == []
    (over,) = cluster.look()
    assert (over.active, over.labels) == (False, found.labels)
    assert cluster.guard.is_calm


def test_a_suspicion_that_ends_at_once_is_not_told() -> None:
    cluster = Cluster()
    assert cluster.look("a1") + cluster.look() + cluster.look("a1") + cluster.look() == []


def test_most_of_the_cluster_is_one_finding() -> None:
    cluster = Cluster()
    (found,) = cluster.look("a0", "a1", "a2", "b0", "b1", "b2", seconds=20)
    assert (found.rule, found.severity) == (MASS_FAILURE, Severity.CRITICAL)
    assert found.labels == {"scope": "cluster"}
    assert found.value == 0.6
    assert found.summary.startswith("6 of 10 agents of the cluster are silent together (a0, a1")


def test_those_told_before_become_part_of_the_mass() -> None:
    cluster = Cluster()
    cluster.look("a0", seconds=4)
    assert cluster.told() == ["a0"]
    cluster.look("a0", "a1", "a2", "b0", "b1", "b2", seconds=4)
    assert cluster.told() == ["all"]


def test_the_end_of_a_mass_names_who_is_still_silent() -> None:
    cluster = Cluster()
    cluster.look("a0", "a1", "a2", "b0", "b1", "b2", seconds=5)
    # Half of them: fewer than it takes to begin, more than it takes to end.
    cluster.look("a0", "a1", "a2", "b0", "b1", seconds=5)
    assert cluster.told() == ["all"]
    cluster.look("a0", "b0", seconds=5)
    assert cluster.told() == ["a0", "b0"]


def test_all_of_a_zone_is_one_finding_beside_single_ones() -> None:
    cluster = Cluster()
    cluster.look("b0", "b1", "b2", "b3", "a0", seconds=5)
    assert cluster.told() == ["a0", "south"]
    assert {f.rule for f in cluster.standing.values()} == {AGENT_SUSPECTED, MASS_FAILURE}
    # More than it takes to end.
    cluster.look("b0", "b1", "a0", seconds=5)
    assert cluster.told() == ["a0", "south"]
    cluster.look("b0", "a0", seconds=5)
    assert cluster.told() == ["a0", "b0"]


def test_few_agents_are_no_mass() -> None:
    pair = Cluster({"x": "", "y": ""})
    pair.look("x", "y", seconds=5)
    assert pair.told() == ["x", "y"]
    single = Cluster({"x": "north", "y": "south", "z": "south"})
    single.look("x", seconds=5)
    assert single.told() == ["x"]
    single.look("y", "z", seconds=5)
    assert single.told() == ["y", "z"]


def test_a_cluster_of_one_zone_is_judged_as_a_whole() -> None:
    cluster = Cluster({f"x{i}": "only" for i in range(4)})
    cluster.look("x0", "x1", seconds=5)
    assert cluster.told() == ["x0", "x1"]


@settings(max_examples=60)
@given(
    st.lists(st.sets(st.sampled_from(sorted(ZONES))), max_size=30),
    st.lists(st.sampled_from(["", "north", "south"]), min_size=10, max_size=10),
)
def test_every_suspect_is_told_once_by_itself_or_by_a_mass(
    looks: list[set[str]], zones: list[str]
) -> None:
    named = dict(zip(sorted(ZONES), zones, strict=True))
    cluster = Cluster(named)
    for suspects in looks:
        # Longer than suspicions are held back.
        cluster.look(*sorted(suspects), seconds=1 + GATHER_MS // 1000)
        covered = "" in cluster.guard.masses
        alone = {f.labels["agent"] for f in cluster.standing.values() if "agent" in f.labels}
        massed = {a for a in suspects if covered or named[a] in cluster.guard.masses}
        assert alone | massed == suspects
        assert not alone & massed
        assert not (covered and len(cluster.guard.masses) > 1)
    cluster.look(seconds=1)
    assert cluster.standing == {}
    assert cluster.guard.is_calm
