"""All that one monitor knows, shared by its parts within one event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from muster.domain.ids import DEFAULT_TENANT, AgentId, TaskId, TenantId
from muster.rpc.listeners import Signal
from muster_monitor.alerting.inbox import FindingInbox
from muster_monitor.failure_detector import DetectorSettings, FailureTable
from muster_monitor.log_lines import Line
from muster_monitor.other_monitors import OverruledSuspicions
from muster_monitor.rings import MetricRings
from muster_monitor.senses import Senses
from muster_monitor.service_figures import Target
from muster_monitor.suspicions import SuspicionBoard
from muster_monitor.task_logs import DEFAULT_MEMORY_BYTES, TaskLogs

# An agent's own lines are for a look at what it is doing, not an archive.
AGENT_LINES = 1_000
AGENT_LINE_BYTES = 2 * 1024
# The agent's lines have no index of their own; they are numbered as they come.
AGENT_LINE_AGENTS = 10_000
# Agents whose tenant is known, also after they are gone.
MAX_TENANTS_KNOWN = 20_000


class AgentLines:
    """The newest lines of every agent's own log."""

    def __init__(self) -> None:
        self._lines: dict[AgentId, deque[Line]] = {}
        self._next: dict[AgentId, int] = {}

    def append(self, agent: AgentId, lines: Sequence[Line]) -> None:
        kept = self._lines.get(agent)
        if kept is None:
            if len(self._lines) >= AGENT_LINE_AGENTS:
                return
            kept = self._lines[agent] = deque(maxlen=AGENT_LINES)
        index = self._next.get(agent, 0)
        for line in lines:
            kept.append(Line(index, line.at_ms, line.stream, line.level, line.text))
            index += 1
        self._next[agent] = index

    def after(self, agent: AgentId, index: int) -> list[Line]:
        """Lines above `index`, oldest first; empty for an unknown agent."""
        return [line for line in self._lines.get(agent, ()) if line.index > index]

    def knows(self, agent: AgentId) -> bool:
        return agent in self._lines

    def forget(self, agent: AgentId) -> None:
        self._lines.pop(agent, None)
        self._next.pop(agent, None)


class MonitorState:
    """`registered` maps agents to incarnations, as the registry showed them last."""

    def __init__(
        self,
        settings: DetectorSettings | None = None,
        log_memory_bytes: int = DEFAULT_MEMORY_BYTES,
        targets: Sequence[Target] = (),
        instance: str = "",
    ) -> None:
        self.table = FailureTable(settings)
        self.board = SuspicionBoard()
        # What detectors have to say goes here, and becomes alerts.
        self.findings = FindingInbox()
        self.rings = MetricRings()
        self.logs = TaskLogs(log_memory_bytes)
        self.agent_lines = AgentLines()
        self.overruled = OverruledSuspicions()
        self.senses = Senses(self.findings, targets, instance)
        self.registered: dict[AgentId, int] = {}
        # Kept when an agent is gone: what is told of it then is still its tenant's alone.
        self.tenants: dict[AgentId, str] = {}
        self.registry_seen = False
        # Unix ms of each agent's newest report.
        self.last_seen_ms: dict[AgentId, int] = {}
        self.suspicions_changed = Signal()
        self.logs_stored = Signal()
        self.logs_ended = Signal()
        self._log_readers: dict[tuple[TenantId, TaskId], Signal] = {}

    def log_signal(self, tenant: TenantId, task: TaskId) -> Signal:
        """Fired when the task's log grows; kept while somebody listens."""
        return self._log_readers.setdefault((tenant, task), Signal())

    def log_grew(self, tenant: TenantId, task: TaskId) -> None:
        signal = self._log_readers.get((tenant, task))
        if signal is not None:
            signal.fire()

    def drop_log_signal(self, tenant: TenantId, task: TaskId) -> None:
        """Called by a reader that has stopped listening."""
        signal = self._log_readers.get((tenant, task))
        if signal is not None and not len(signal):
            del self._log_readers[(tenant, task)]

    def remember_tenant(self, agent: AgentId, tenant: str) -> None:
        """Whose agent it is; those that went first are forgotten when there are too many."""
        self.tenants[agent] = tenant or DEFAULT_TENANT
        if len(self.tenants) > MAX_TENANTS_KNOWN:
            gone = next((a for a in self.tenants if a not in self.registered), agent)
            del self.tenants[gone]

    def forget(self, agent: AgentId, at_ms: int) -> None:
        """Nothing was heard of it for longer than its metrics are kept."""
        self.agent_lines.forget(agent)
        self.senses.forget(agent, at_ms, registered=agent in self.registered)
        self.last_seen_ms.pop(agent, None)
