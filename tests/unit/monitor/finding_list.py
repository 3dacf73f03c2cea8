"""Where findings go in tests: a list in the order of their coming."""

from __future__ import annotations

from collections.abc import Iterable

from muster_monitor.findings import Finding


class FindingList:
    """`newest` may be read and cleared."""

    def __init__(self) -> None:
        self.newest: list[Finding] = []

    def post(self, findings: Iterable[Finding]) -> None:
        self.newest.extend(findings)
