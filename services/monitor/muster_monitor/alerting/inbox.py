"""Where detectors leave their findings: bounded, in memory, never in their way. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from muster_monitor.alerting.alerts import (
    MAX_LABEL_CHARS,
    MAX_LABEL_NAME_CHARS,
    MAX_LABELS,
    fingerprint_of,
)
from muster_monitor.findings import Finding

# Conditions that hold at once by this monitor's word; as many as an alert book takes.
MAX_CONDITIONS = 5_000
# Between two looks of the alert desk, one second apart.
MAX_WAITING = 10_000


class FindingInbox:
    """`standing` holds what is active by this monitor's word, by fingerprint."""

    def __init__(self) -> None:
        self.standing: dict[str, Finding] = {}
        self.dropped = 0
        self._waiting: deque[tuple[str, Finding]] = deque()
        # New texts and figures of conditions that are known; only the newest counts.
        self._renewed: dict[str, Finding] = {}

    def post(self, findings: Iterable[Finding]) -> None:
        """Takes findings; never waits, never raises on what they say.

        A condition may be posted as often as one likes. What is beyond the bounds is dropped and
        counted in `dropped`; the end of a condition that was taken is never dropped.
        """
        for finding in findings:
            fingerprint = fingerprint_of(finding.rule, finding.labels)
            known = fingerprint in self.standing
            if finding.active and known:
                self.standing[fingerprint] = self._renewed[fingerprint] = finding
            elif finding.active:
                self._begin(fingerprint, finding)
            elif known or len(self._waiting) < MAX_WAITING:
                self.standing.pop(fingerprint, None)
                self._renewed.pop(fingerprint, None)
                self._waiting.append((fingerprint, finding))
            else:
                self.dropped += 1

    def take(self) -> Sequence[tuple[str, Finding]]:
        """All that came since the last time, oldest first."""
        taken = [*self._waiting, *self._renewed.items()]
        self._waiting.clear()
        self._renewed.clear()
        return taken

    def _begin(self, fingerprint: str, finding: Finding) -> None:
        full = len(self.standing) >= MAX_CONDITIONS or len(self._waiting) >= MAX_WAITING
        if full or not _is_sound(finding):
            self.dropped += 1
            return
        self.standing[fingerprint] = finding
        self._waiting.append((fingerprint, finding))


def _is_sound(finding: Finding) -> bool:
    return len(finding.labels) <= MAX_LABELS and all(
        0 < len(name) <= MAX_LABEL_NAME_CHARS and len(text) <= MAX_LABEL_CHARS
        for name, text in finding.labels.items()
    )
