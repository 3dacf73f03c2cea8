"""What the monitor makes of all it hears: findings, posted to whoever makes alerts of them.

One object of one event loop. Its methods are called where things are heard, take microseconds to
a few milliseconds, and never raise on what agents send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from muster.domain.ids import AgentId
from muster_monitor.findings import Finding, Severity
from muster_monitor.log_analysis.analysis import LogAnalysis
from muster_monitor.mass_failure import MassGuard
from muster_monitor.rules.figures import FigureJudge
from muster_monitor.rules.located import Mistake
from muster_monitor.rules.reading import builtin_rules
from muster_monitor.rules.schema import RuleSet, Source, Subject
from muster_monitor.self_trust import SelfTrust
from muster_monitor.service_figures import Series, ServiceFigures, Target

RULES_INVALID = "rules_invalid"
ZONE_LABEL = "zone"
# Labels of an agent that selectors see; an agent has fewer.
MAX_SUBJECT_LABELS = 64


class FindingSink(Protocol):
    """Takes findings; must not block and must not raise."""

    def post(self, findings: Iterable[Finding], /) -> None: ...


class Senses:
    """`instance` names this monitor in findings about itself."""

    def __init__(
        self, sink: FindingSink, targets: Iterable[Target] = (), instance: str = ""
    ) -> None:
        self._sink = sink
        self.rules: RuleSet = builtin_rules()
        self.agents = FigureJudge(Source.AGENT, self.rules.figures)
        self.services = FigureJudge(Source.SERVICE, self.rules.figures)
        self.lines = LogAnalysis(self.rules.logs)
        self.mass = MassGuard()
        self.trust = SelfTrust()
        self._service_figures = ServiceFigures(targets)
        self._subjects: dict[AgentId, Subject] = {}
        self._instance = instance
        self._broken: Finding | None = None

    @property
    def service_metrics(self) -> frozenset[str]:
        """What is looked for on the services' pages."""
        return self.services.metrics

    def knows(self, agent: AgentId) -> bool:
        """Whether the registry has ever named it (and it is not forgotten)."""
        return agent in self._subjects

    def zone_of(self, agent: AgentId) -> str:
        subject = self._subjects.get(agent)
        return subject.attributes.get(ZONE_LABEL, "") if subject is not None else ""

    def registered(self, agent: AgentId, labels: Mapping[str, str], skills: Iterable[str]) -> None:
        """What the registry says of an agent; the same again changes nothing."""
        kept = dict(sorted(labels.items())[:MAX_SUBJECT_LABELS])
        attributes = {**kept, "agent": agent}
        offered = frozenset(skills)
        before = self._subjects.get(agent)
        if before and before.attributes == attributes and before.skills == offered:
            return
        shown = {"agent": str(agent)}
        if zone := kept.get(ZONE_LABEL, "")[:200]:
            shown[ZONE_LABEL] = zone
        self._subjects[agent] = Subject(agent, f"agent {agent}", shown, attributes, offered)

    def figures_came(
        self, agent: AgentId, figures: Mapping[str, float], now_ms: int, at_ms: int
    ) -> None:
        """Sound figures of one report."""
        self._post(self.agents.observe(self._subject(agent), figures, now_ms, at_ms))

    def lines_came(
        self, agent: AgentId, own: bool, lines: Sequence[tuple[str, str]], now_ms: int
    ) -> None:
        """Pairs of level and text; looked at later."""
        self.lines.offer(self._subject(agent), own, lines, now_ms)

    def read_lines(self, most: int, now_ms: int, at_ms: int) -> None:
        self._post(self.lines.read_some(most, now_ms, at_ms))

    def services_read(
        self, readings: Mapping[Target, list[Series] | None], now_ms: int, at_ms: int
    ) -> None:
        """One round of the services' pages."""
        found: list[Finding] = []
        rounds = self._service_figures.round(readings, self.services.rules, now_ms)
        for subject, figures in rounds:
            found += self.services.observe(subject, figures, now_ms, at_ms)
        self._post(found)

    def suspects_are(
        self, suspects: Mapping[AgentId, str], heard: Iterable[AgentId], now_ms: int, at_ms: int
    ) -> None:
        """All present suspicions, with why; `heard` are all agents that are watched."""
        if not suspects and self.mass.is_calm:
            return
        zones = {str(agent): self.zone_of(agent) for agent in heard}
        named = {str(agent): why for agent, why in suspects.items()}
        self._post(self.mass.look(named, zones, now_ms, at_ms))

    def sweep(self, now_ms: int, at_ms: int) -> None:
        """About once a second: what ends by time alone."""
        found = self.agents.sweep(now_ms, at_ms) + self.services.sweep(now_ms, at_ms)
        found += self.lines.sweep(now_ms, at_ms)
        if (lagging := self.trust.judge(self._instance, at_ms)) is not None:
            found.append(lagging)
        self._post(found)

    def forget(self, agent: AgentId, at_ms: int, *, registered: bool) -> None:
        """It was silent for so long that nothing is kept of it but what the registry says."""
        self._post(self.agents.forget(agent, at_ms))
        self.lines.forget(agent)
        if not registered:
            self._subjects.pop(agent, None)

    def new_rules(self, wall_ms: Callable[[], int]) -> Callable[[RuleSet], None]:
        """Takes rules that were read."""

        def take(rules: RuleSet) -> None:
            self.rules = rules
            at_ms = wall_ms()
            ended = self.agents.replace_rules(rules.figures, at_ms)
            ended += self.services.replace_rules(rules.figures, at_ms)
            self.lines.replace_rules(rules.logs)
            self._post(ended)

        return take

    def broken_rules(self, wall_ms: Callable[[], int]) -> Callable[[list[Mistake]], None]:
        """Takes the mistakes of a file that was not taken; none = it is mended."""

        def take(mistakes: list[Mistake]) -> None:
            if not mistakes and self._broken is None:
                return
            labels = {"service": "monitor", "instance": self._instance}
            more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
            text = (
                f"the rules file is broken, the rules before stay in force: {mistakes[0]}{more}"
                if mistakes
                else "the rules file is sound again"
            )
            made = Finding(
                RULES_INVALID, labels, Severity.WARNING, bool(mistakes), text[:500], wall_ms()
            )
            self._broken = made if mistakes else None
            self._post([made])

        return take

    def _subject(self, agent: AgentId) -> Subject:
        subject = self._subjects.get(agent)
        if subject is None:
            # The registry has not named it yet.
            self.registered(agent, {}, ())
            subject = self._subjects[agent]
        return subject

    def _post(self, findings: list[Finding]) -> None:
        if findings:
            self._sink.post(findings)
