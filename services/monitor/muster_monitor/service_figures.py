"""Figures of the services from what their /metrics pages say, replicas joined. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from muster.domain.errors import InvalidInput
from muster_monitor.rules.schema import FigureRule, Source, Subject

# A service shows some hundred series; one that shows more of what rules ask for is cut there.
MAX_SERIES = 2_000
MAX_SCRAPE_TARGETS = 64
# Labels of a finding, and the length of each, as alerts take them.
_MAX_SERIES_LABELS = 12
_MAX_LABEL_CHARS = 200
# 1 when the page could be read.
UP = "up"

_SeriesKey = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Target:
    """One replica of one service, and where its /metrics is."""

    service: str
    address: str


@dataclass(frozen=True, slots=True)
class Series:
    """One figure: metric, labels (sorted), value."""

    metric: str
    labels: tuple[tuple[str, str], ...]
    value: float


def parse_page(page: str, wanted: frozenset[str]) -> list[Series]:
    """The series of a page in Prometheus' text form whose metric is wanted.

    Other lines are skipped unread. Raises InvalidInput for what is no such page.
    """
    kept = "\n".join(line for line in page.splitlines() if _name_of(line) in wanted)
    found: list[Series] = []
    try:
        for family in text_string_to_metric_families(kept + "\n"):
            for sample in family.samples:
                value = float(sample.value)
                if value - value != 0.0 or len(sample.labels) > _MAX_SERIES_LABELS:
                    continue
                labels = ((k[:64], str(v)[:_MAX_LABEL_CHARS]) for k, v in sample.labels.items())
                found.append(Series(sample.name, tuple(sorted(labels)), value))
                if len(found) >= MAX_SERIES:
                    return found
    except (ValueError, KeyError, IndexError) as error:
        raise InvalidInput("metrics", str(error), "Prometheus' text form") from None
    return found


def _name_of(line: str) -> str:
    for end, char in enumerate(line):
        if char in "{ ":
            return line[:end]
    return line


class ServiceFigures:
    """Turns rounds of readings into subjects and figures for the rules."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = tuple(targets)
        # The counters of the round before, by target.
        self._before: dict[Target, tuple[int, dict[_SeriesKey, float]]] = {}
        self._subjects: dict[str, Subject] = {}

    def round(
        self,
        readings: Mapping[Target, list[Series] | None],
        rules: Iterable[FigureRule],
        now_ms: int,
    ) -> Iterator[tuple[Subject, dict[str, float]]]:
        """`readings`: None for a target that did not answer. `now_ms` is monotonic."""
        rated = frozenset(r.metric for r in rules if r.rate and r.source is Source.SERVICE)
        figures: dict[str, dict[str, float]] = {}
        seen: dict[str, Subject] = {}
        for target, series in readings.items():
            up = self._subject(target.service, target.address, ())
            seen[up.ident] = up
            figures[up.ident] = {UP: 0.0 if series is None else 1.0}
            for labels, metric, value in self._values(target, series or [], rated, now_ms):
                own = self._subject(target.service, target.address, labels)
                joined = self._subject(target.service, "", labels)
                seen[own.ident], seen[joined.ident] = own, joined
                figures.setdefault(own.ident, {})[metric] = value
                _join(figures.setdefault(joined.ident, {}), metric, value)
        self._subjects = {ident: s for ident, s in self._subjects.items() if ident in seen}
        for ident, subject in seen.items():
            yield subject, figures[ident]

    def _values(
        self, target: Target, series: list[Series], rated: frozenset[str], now_ms: int
    ) -> Iterator[tuple[tuple[tuple[str, str], ...], str, float]]:
        before_ms, before = self._before.get(target, (now_ms, {}))
        elapsed_s = (now_ms - before_ms) / 1000
        counters: dict[_SeriesKey, float] = {}
        for one in series:
            yield one.labels, one.metric, one.value
            if one.metric not in rated:
                continue
            key = (one.metric, one.labels)
            counters[key] = one.value
            # A counter that comes into being while its service runs has grown from nothing.
            was = before.get(key, 0.0 if before_ms < now_ms else None)
            if was is None or elapsed_s <= 0:
                continue
            # One that has fallen began anew, with its process.
            grown = one.value - was if one.value >= was else one.value
            yield one.labels, f"rate:{one.metric}", grown / elapsed_s
        if series:
            self._before[target] = (now_ms, counters)

    def _subject(self, service: str, instance: str, labels: tuple[tuple[str, str], ...]) -> Subject:
        ident = f"{service}\0{instance}\0{labels}"
        subject = self._subjects.get(ident)
        if subject is None:
            own = {"service": service, "instance": instance} if instance else {"service": service}
            # What the service says of itself must not pass for what we know of it.
            told = {key: text for key, text in labels if key not in ("service", "instance")}
            name = " ".join([service, *filter(None, [instance]), *told.values()])
            subject = Subject(ident, name[:200], {**told, **own}, {**told, **own})
            self._subjects[ident] = subject
        return subject


def _join(figures: dict[str, float], metric: str, value: float) -> None:
    for how, of in (("sum", float.__add__), ("max", max), ("min", min)):
        name = f"{how}:{metric}"
        figures[name] = of(figures[name], value) if name in figures else value
