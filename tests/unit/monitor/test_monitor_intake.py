"""Reports that are wrong, forged or enormous: refused or cut, counted, and the beats go on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.monitor.finding_list import FindingList

from muster.api.v1 import monitor_pb2 as pb
from muster.api.v1 import registry_pb2
from muster.domain.errors import InvalidInput
from muster.domain.ids import DEFAULT_TENANT as TENANT
from muster.domain.ids import AgentId, request_prefix, task_id
from muster_monitor import metrics
from muster_monitor.intake import LINES_BURST, Intake
from muster_monitor.roster import apply
from muster_monitor.senses import Senses
from muster_monitor.state import MonitorState

A = AgentId("a")
TASK = task_id(request_prefix(TENANT, "k", 1), 0)
WALL_MS = 1_790_000_000_000


class Heard(MonitorState):
    """A monitor's state whose findings are a list."""

    def __init__(self) -> None:
        super().__init__()
        self.told = FindingList()
        self.senses = Senses(self.told)


def state_knowing(*agents: str) -> Heard:
    state = Heard()
    message = registry_pb2.WatchAgentsResponse(snapshot=True, revision=1)
    for name in agents:
        record = message.agents.add(incarnation=3)
        record.spec.id = name
        record.spec.labels["zone"] = "north"
        record.spec.skills.add(name="ocr")
    apply(state, lambda: WALL_MS, message)
    return state


def report(
    seq: int = 1, agent: str = "a", incarnation: int = 3, **fields: object
) -> pb.ReportRequest:
    values = {"at_ms": WALL_MS, **fields}
    return pb.ReportRequest(agent=agent, incarnation=incarnation, seq=seq, **values)  # type: ignore[arg-type]


def dropped(reason: str) -> float:
    return float(metrics.DROPPED.labels(reason)._value.get())


def told(state: Heard) -> list[tuple[str, bool]]:
    return [(finding.rule, finding.active) for finding in state.told.newest]


def test_figures_are_judged_with_the_agents_labels() -> None:
    state = state_knowing("a")
    intake = Intake(state)
    intake.take(report(metrics={"host_memory_ratio": 0.99}), 1_000, WALL_MS)
    assert told(state) == [("agent_memory_high", True), ("agent_memory_full", True)]
    assert state.told.newest[0].labels == {"agent": "a", "zone": "north"}
    intake.take(report(2, metrics={"host_memory_ratio": 0.5}), 2_000, WALL_MS + 1_000)
    assert told(state)[2:] == [("agent_memory_high", False), ("agent_memory_full", False)]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("host_memory_ratio", math.nan, "not_finite"),
        ("host_memory_ratio", math.inf, "not_finite"),
        ("host_memory_ratio", -0.5, "negative"),
        ("agent_queued", -1.0, "negative"),
        ("Bad Name", 1.0, "bad_name"),
        ("x" * 1000, 1.0, "bad_name"),
    ],
)
def test_impossible_figures_are_dropped_and_counted(name: str, value: float, reason: str) -> None:
    state = state_knowing("a")
    intake = Intake(state)
    intake.take(report(metrics={name: value, "host_disk_ratio": 0.99}), 1_000, WALL_MS)
    assert state.rings.dropped[reason] == 1
    # What is sound beside it is taken.
    assert ("agent_disk_full", True) in told(state)
    assert state.table.incarnation(A) == 3


@pytest.mark.parametrize("at_ms", [WALL_MS + 3_600_000, WALL_MS - 86_400_000, 2**62, 0])
def test_a_wrong_clock_hides_nothing(at_ms: int) -> None:
    state = state_knowing("a")
    intake = Intake(state)
    intake.take(report(at_ms=at_ms, metrics={"host_disk_ratio": 0.99}), 1_000, WALL_MS)
    assert ("agent_disk_full", True) in told(state)
    sample = state.rings.newest(A)
    assert sample is not None
    assert sample.at_ms == WALL_MS
    assert {finding.at_ms for finding in state.told.newest} == {WALL_MS}


def test_another_incarnation_is_refused_in_a_stream_and_ignored_in_its_own() -> None:
    state = state_knowing("a")
    intake = Intake(state)
    intake.take(report(), 1_000, WALL_MS)
    with pytest.raises(InvalidInput, match="this stream is a/3"):
        intake.take(report(2, incarnation=4), 2_000, WALL_MS)
    before = dropped("old_incarnation")
    ghost = Intake(state)
    line = pb.LogLine(stream=pb.LOG_STREAM_AGENT, level="error", text="out of memory")
    ghost.take(
        report(1, incarnation=2, metrics={"host_disk_ratio": 0.99}, lines=[line]), 2_000, WALL_MS
    )
    assert dropped("old_incarnation") == before + 1
    assert told(state) == []
    assert state.senses.lines.queued == 0
    assert ghost.advance() == 1


def test_an_agent_that_nobody_registered_is_counted_and_not_judged() -> None:
    state = state_knowing("a")
    before = dropped("unknown_agent")
    intake = Intake(state)
    intake.take(report(agent="ghost", metrics={"host_disk_ratio": 0.99}), 1_000, WALL_MS)
    assert dropped("unknown_agent") == before + 1
    assert told(state) == []
    # Before the registry has spoken nobody is unknown.
    fresh = Heard()
    Intake(fresh).take(report(metrics={"host_disk_ratio": 0.99}), 1_000, WALL_MS)
    assert ("agent_disk_full", True) in told(fresh)


def test_log_lines_are_searched_and_a_repetition_is_not() -> None:
    state = state_knowing("a")
    lines = [
        pb.LogLine(
            tenant=TENANT, task_id=TASK, attempt=1, index=i, stream=pb.LOG_STREAM_STDERR, text=text
        )
        for i, text in enumerate(["fine", "java.lang.OutOfMemoryError: out of memory"])
    ]
    Intake(state).take(report(lines=lines), 1_000, WALL_MS)
    assert state.senses.lines.queued == 2
    state.senses.read_lines(100, 1_000, WALL_MS)
    assert told(state) == [("log_out_of_memory", True)]
    # After a lost stream the agent sends them again.
    Intake(state).take(report(lines=lines), 2_000, WALL_MS)
    assert state.senses.lines.queued == 0


def test_enormous_and_binary_lines_are_cut_and_escaped() -> None:
    state = state_knowing("a")
    intake = Intake(state)
    texts = ["error " + "x" * (10 * 1024 * 1024), "error \x1b[2J\x00\r\n\u202e", "error " * 100_000]
    lines = [pb.LogLine(stream=pb.LOG_STREAM_AGENT, text=text) for text in texts]
    intake.take(report(lines=lines), 1_000, WALL_MS)
    assert all(len(line.text) <= 512 for line in state.senses.lines._queue)
    assert all(line.text.isprintable() for line in state.senses.lines._queue)
    kept = state.agent_lines.after(A, -1)
    assert all(len(line.text.encode()) <= 2 * 1024 for line in kept)
    state.senses.read_lines(100, 1_000, WALL_MS)
    assert state.senses.lines.error_lines == 3


def test_a_hundred_thousand_lines_a_second_are_cut_and_the_beat_counts() -> None:
    state = state_knowing("a", "b")
    intake, other = Intake(state), Intake(state)
    before = dropped("too_many_lines")
    other.take(report(agent="b"), 1_000, WALL_MS)
    lines = [pb.LogLine(stream=pb.LOG_STREAM_AGENT, text="spam")] * 100_000
    intake.take(report(lines=lines), 1_000, WALL_MS)
    assert dropped("too_many_lines") == before + 100_000 - LINES_BURST
    assert state.senses.lines.queued <= 1_000
    assert state.senses.lines.left_out["too_fast"] == LINES_BURST - state.senses.lines.queued
    assert state.table.incarnation(A) == 3
    assert intake.advance() == 1


_FIGURES = st.dictionaries(
    st.sampled_from(["host_memory_ratio", "agent_queued", "agent_memory_bytes", "strange"])
    | st.text(max_size=8),
    st.floats(),
    max_size=6,
)
_LINES = st.lists(
    st.builds(
        pb.LogLine,
        tenant=st.sampled_from(["", "default", "x"]),
        task_id=st.sampled_from(["", TASK, "no task"]),
        attempt=st.integers(-1, 3),
        at_ms=st.integers(-(2**63), 2**63 - 1),
        stream=st.integers(0, 6),
        level=st.sampled_from(["", "error", "\x00" * 40]),
        text=st.text(max_size=60),
        index=st.integers(-(2**63), 2**62),
    ),
    max_size=6,
)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(
            _FIGURES,
            _LINES,
            st.integers(-(2**63), 2**63 - 1),
            st.integers(1, 4),
            st.sampled_from(["a", "ghost"]),
        ),
        max_size=8,
    )
)
def test_no_report_wedges_the_monitor(
    reports: list[tuple[dict[str, float], list[pb.LogLine], int, int, str]],
) -> None:
    state = state_knowing("a")
    now_ms = 1_000
    for seq, (figures, lines, at_ms, incarnation, agent) in enumerate(reports, start=1):
        now_ms += 700
        intake = Intake(state)
        intake.take(
            report(seq, agent, incarnation, at_ms=at_ms, metrics=figures, lines=lines),
            now_ms,
            WALL_MS,
        )
        assert intake.acks.waiting <= 1
    state.senses.read_lines(1_000, now_ms, WALL_MS)
    state.senses.sweep(now_ms, WALL_MS)
    assert all(math.isfinite(f.value) or math.isnan(f.value) for f in state.told.newest)
    assert all(f.summary.isprintable() for f in state.told.newest)
    # And it is still heard.
    Intake(state).take(report(99, incarnation=9), now_ms + 1, WALL_MS)
    assert state.table.incarnation(A) == 9
