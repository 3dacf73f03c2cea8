"""Matchers of labels, as users of Alertmanager write them: =, !=, =~ and !~. Pure.

Regular expressions are RE2's and match the whole text, so that none takes more than linear time.
A label that an alert lacks matches as if it were empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import re2

from muster.domain.errors import InvalidInput
from muster_monitor.alerting.alerts import MAX_LABEL_CHARS, MAX_LABEL_NAME_CHARS, Alert

MAX_MATCHERS: Final = 16
# Of one compiled expression.
_MAX_PROGRAM_BYTES: Final = 1024 * 1024
_CACHED: Final = 1_024
# Split by the first operator; a name holds none of them. It may be in quotes, and so may the text.
_FORM: Final = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.-]*)\s*(=~|!~|!=|=)\s*(.*)", re.DOTALL)
_ACCEPTED: Final = 'NAME=TEXT, NAME!=TEXT, NAME=~EXPRESSION or NAME!~EXPRESSION, e.g. agent=~"a-.*"'


class Matcher(msgspec.Struct, frozen=True):
    """`op` is =, !=, =~ or !~."""

    name: str
    op: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}{self.op}{self.text}"

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether it holds of an alert's names and texts (`labels_of`)."""
        found = labels.get(self.name, "")
        if self.op == "=":
            return found == self.text
        if self.op == "!=":
            return found != self.text
        matched = _compiled(self.text).fullmatch(found) is not None
        return matched if self.op == "=~" else not matched


def parse_matcher(text: str, field: str) -> Matcher:
    """Raises InvalidInput naming `field`."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise InvalidInput(field, text, f"a matcher has the form {_ACCEPTED}")
    name, op, wanted = match[1], match[2], match[3].strip()
    if len(wanted) >= 2 and wanted[0] == wanted[-1] == '"':
        wanted = wanted[1:-1]
    if len(name) > MAX_LABEL_NAME_CHARS or len(wanted) > MAX_LABEL_CHARS:
        limit = f"a name has at most {MAX_LABEL_NAME_CHARS}, a text {MAX_LABEL_CHARS} characters"
        raise InvalidInput(field, text, limit)
    if op in ("=~", "!~"):
        try:
            _compiled(wanted)
        except (re2.error, UnicodeError) as error:
            raise InvalidInput(field, text, f"a regular expression of RE2 ({error})") from None
    return Matcher(name, op, wanted)


def parse_matchers(texts: Sequence[str], field: str) -> tuple[Matcher, ...]:
    """1 to MAX_MATCHERS, all of which have to hold; raises InvalidInput."""
    if not 1 <= len(texts) <= MAX_MATCHERS:
        raise InvalidInput(field, len(texts), f"1 to {MAX_MATCHERS} matchers")
    return tuple(parse_matcher(text, f"{field}[{n}]") for n, text in enumerate(texts))


def labels_of(alert: Alert) -> dict[str, str]:
    """What matchers see: the alert's labels, `rule` (also as `alertname`) and `severity`."""
    return {
        **alert.labels,
        "rule": alert.rule,
        "alertname": alert.rule,
        "severity": str(alert.severity),
    }


def all_hold(matchers: Sequence[Matcher], labels: Mapping[str, str]) -> bool:
    """Whether every one holds."""
    return all(matcher.holds(labels) for matcher in matchers)


@lru_cache(maxsize=_CACHED)
def _compiled(expression: str) -> Any:
    options = re2.Options()
    options.max_mem = _MAX_PROGRAM_BYTES
    options.log_errors = False
    return re2.compile(expression, options)
