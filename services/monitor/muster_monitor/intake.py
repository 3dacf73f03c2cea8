"""Takes one agent's reports into the monitor's state and says what may be acknowledged."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice

from muster.api.v1 import monitor_pb2 as pb
from muster.domain.errors import InvalidInput
from muster.domain.ids import AgentId, TaskId, TenantId, parse_agent_id, parse_task_id
from muster_monitor import metrics
from muster_monitor.acknowledgements import Acknowledgements
from muster_monitor.failure_detector import Verdict
from muster_monitor.log_analysis.rates import TokenBucket
from muster_monitor.log_lines import Line, cut_text
from muster_monitor.state import AGENT_LINE_BYTES, MonitorState
from muster_monitor.task_logs import LogKey

STREAM_NAMES: dict[int, str] = {
    pb.LOG_STREAM_STDOUT: "stdout",
    pb.LOG_STREAM_STDERR: "stderr",
    pb.LOG_STREAM_LOG: "log",
    pb.LOG_STREAM_AGENT: "agent",
}
STREAM_VALUES: dict[str, pb.LogStream.ValueType] = {
    "stdout": pb.LOG_STREAM_STDOUT,
    "stderr": pb.LOG_STREAM_STDERR,
    "log": pb.LOG_STREAM_LOG,
    "agent": pb.LOG_STREAM_AGENT,
}
_MAX_LEVEL_CHARS = 16
# An agent lets through 500 lines a second of each attempt. More than this of one stream would
# take the time of everybody's heartbeats.
LINES_PER_S = 10_000
LINES_BURST = 20_000


class Intake:
    """One report stream: one agent, one incarnation."""

    def __init__(self, state: MonitorState) -> None:
        self._state = state
        self._agent = AgentId("")
        self._incarnation = 0
        self.acks = Acknowledgements()
        self.leaving = False
        self._told = False
        self._lines_allowed = TokenBucket(LINES_PER_S, LINES_BURST, 0)

    def take(self, report: pb.ReportRequest, now_ms: int, wall_ms: int) -> None:
        """`now_ms` is monotonic. Raises InvalidInput when the stream is not what it must be.

        A metric or line that cannot be kept is dropped and counted: it must not end the beats.
        """
        self._identify(report)
        metrics.REPORTS.inc()
        current = self._state.table.observe(self._agent, self._incarnation, now_ms)
        if current:
            self._heard(wall_ms)
            self._state.last_seen_ms[self._agent] = wall_ms
            self._figures(report, now_ms, wall_ms)
        else:
            metrics.DROPPED.labels("old_incarnation").inc()
        needs = self._lines(report, now_ms, current)
        needs += self._ends(report, now_ms)
        if report.leaving:
            self.leaving = True
            if self._state.table.leave(self._agent, self._incarnation):
                self._unheard(wall_ms)
        self.acks.received(report.seq, needs)

    def _heard(self, wall_ms: int) -> None:
        if not self._told:
            self._told = True
            if self._state.board.hears(self._agent, self._incarnation, wall_ms):
                self._state.suspicions_changed.fire()

    def _unheard(self, wall_ms: int) -> None:
        verdict = Verdict(self._agent, self._incarnation, False, 0.0, "it left")
        self._state.board.post(verdict, wall_ms, heard=False)
        self._state.suspicions_changed.fire()

    def advance(self) -> int:
        """The sequence number up to which everything is kept."""
        return self.acks.advance(self._state.logs.is_safe)

    def _identify(self, report: pb.ReportRequest) -> None:
        if not self._agent:
            self._agent = parse_agent_id(report.agent)
            if report.incarnation <= 0:
                raise InvalidInput("incarnation", report.incarnation, "a positive number")
            self._incarnation = report.incarnation
        elif (report.agent, report.incarnation) != (self._agent, self._incarnation):
            said = f"{report.agent}/{report.incarnation}"
            raise InvalidInput("agent", said, f"this stream is {self._agent}/{self._incarnation}")

    def _figures(self, report: pb.ReportRequest, now_ms: int, wall_ms: int) -> None:
        if not report.metrics:
            return
        figures = self._state.rings.add(self._agent, report.at_ms, report.metrics, wall_ms)
        if not self._is_known():
            metrics.DROPPED.labels("unknown_agent").inc()
        elif figures:
            self._state.senses.figures_came(self._agent, figures, now_ms, wall_ms)

    def _is_known(self) -> bool:
        """Rules and logs of somebody whom the registry never named are not looked at."""
        return not self._state.registry_seen or self._state.senses.knows(self._agent)

    def _lines(
        self, report: pb.ReportRequest, now_ms: int, current: bool
    ) -> list[tuple[LogKey, int]]:
        by_attempt: defaultdict[LogKey, list[Line]] = defaultdict(list)
        own: list[Line] = []
        taken = self._lines_allowed.take(len(report.lines), now_ms) if report.lines else 0
        if taken < len(report.lines):
            metrics.DROPPED.labels("too_many_lines").inc(len(report.lines) - taken)
        for line in islice(report.lines, taken):
            stream = STREAM_NAMES.get(line.stream)
            if stream is None:
                metrics.DROPPED.labels("unknown_stream").inc()
                continue
            level = line.level[:_MAX_LEVEL_CHARS]
            if not line.task_id:
                text = cut_text(line.text, AGENT_LINE_BYTES)
                own.append(Line(0, line.at_ms, "agent", level, text))
                continue
            key = _key(line.tenant, line.task_id, line.attempt)
            if key is None or line.index < 0:
                metrics.DROPPED.labels("bad_line").inc()
                continue
            by_attempt[key].append(Line(line.index, line.at_ms, stream, level, cut_text(line.text)))
        analysed = current and self._is_known()
        if own:
            if analysed:
                self._analyse(True, own, now_ms)
            self._state.agent_lines.append(self._agent, own)
            metrics.LINES.labels("agent").inc(len(own))
        needs = []
        for key, lines in by_attempt.items():
            metrics.LINES.labels("task").inc(len(lines))
            if analysed:
                # What the agent sends again after a lost stream was looked at before.
                log = self._state.logs.get(key)
                known = log.next_index if log is not None else 0
                self._analyse(False, [line for line in lines if line.index >= known], now_ms)
            position = self._state.logs.append(key, lines, now_ms)
            if position:
                needs.append((key, position))
            self._state.log_grew(key.tenant, key.task)
        return needs

    def _analyse(self, own: bool, lines: list[Line], now_ms: int) -> None:
        pairs = [(line.level, line.text) for line in lines]
        self._state.senses.lines_came(self._agent, own, pairs, now_ms)

    def _ends(self, report: pb.ReportRequest, now_ms: int) -> list[tuple[LogKey, int]]:
        needs = []
        for end in report.ends:
            key = _key(end.tenant, end.task_id, end.attempt)
            if key is None:
                metrics.DROPPED.labels("bad_line").inc()
                continue
            position = self._state.logs.end(key, now_ms)
            if position:
                needs.append((key, position))
                self._state.logs_ended.fire()
            self._state.log_grew(key.tenant, key.task)
        return needs


def _key(tenant: str, task: str, attempt: int) -> LogKey | None:
    try:
        ident: TaskId = parse_task_id(task)
    except InvalidInput:
        return None
    return LogKey(TenantId(tenant or "default"), ident, attempt) if attempt > 0 else None
