"""The document of MUSTER_MONITOR_ALERTING: who is told of alerts, and how. Pure.

`check` says all that is wrong with a document, one sentence for each mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import yaml

from muster.domain.durations import parse_duration_ms
from muster.domain.errors import ConfigurationError, InvalidInput, quoted
from muster.outbound.addresses import AllowList
from muster.outbound.requests import Target, parse_headers, parse_url
from muster_monitor.alerting.alerts import MAX_LABEL_NAME_CHARS, MAX_LABELS
from muster_monitor.alerting.grouping import EACH, Rhythm
from muster_monitor.alerting.matching import parse_matcher, parse_matchers

MAX_DOCUMENT_BYTES: Final = 256 * 1024
# Each is a task of its own in the monitor and a ledger of its own in storage.
MAX_RECEIVERS: Final = 8
MAX_SECRET_BYTES: Final = 4_096
_MAX_MISTAKES: Final = 50
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LABEL: Final = re.compile(rf"[A-Za-z_][A-Za-z0-9_.-]{{0,{MAX_LABEL_NAME_CHARS - 1}}}|\.\.\.")
_DAY_MS: Final = 86_400_000
# The version of Alertmanager's interface; its address is given without a path.
_ALERTS_PATH: Final = "/api/v2/alerts"
_DEFAULT_TIMEOUT_MS: Final = 10_000
_DEFAULT_RESEND_MS: Final = 60_000

_RHYTHM_KEYS: Final = ("group_by", "group_wait", "group_interval", "repeat_interval")
_KEYS: Final = frozenset({"receivers", "allow", *_RHYTHM_KEYS})
# Of a webhook without `match`: nobody is woken by what is only good to know. Alertmanager gets all,
# as of Prometheus, because it is the place where its users choose.
_WORTH_A_MESSAGE: Final = (parse_matcher("severity!=info", "match"),)
_RECEIVER_KEYS: Final = frozenset({"name", "match", "webhook", "alertmanager", *_RHYTHM_KEYS})
_WEBHOOK_KEYS: Final = frozenset({"url", "secret_file", "headers", "timeout"})
_ALERTMANAGER_KEYS: Final = frozenset({"url", "headers", "timeout", "resend"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Receiver:
    """One who is told. `secret_file` "" = what is sent is not signed."""

    name: str
    kind: str
    target: Target
    rhythm: Rhythm
    headers: tuple[tuple[str, str], ...] = ()
    secret_file: str = ""
    timeout_s: float = _DEFAULT_TIMEOUT_MS / 1000


@dataclass(frozen=True, slots=True)
class AlertingSettings:
    """With none of all that nobody is told; alerts are kept and shown all the same."""

    receivers: tuple[Receiver, ...] = ()
    allow: AllowList = field(default_factory=AllowList)


class _Loader(yaml.SafeLoader):
    """YAML without aliases (a few of them unfold into gigabytes) and without a key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name} stands there twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def check(text: str) -> tuple[AlertingSettings | None, list[str]]:
    """The settings, or None and all that is wrong with the document."""
    if len(text.encode()) > MAX_DOCUMENT_BYTES:
        return None, [f"the document is too large: at most {MAX_DOCUMENT_BYTES} bytes are taken"]
    try:
        document = yaml.load(text, _Loader)  # noqa: S506  a safe one
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return None, ["this is not YAML: " + " ".join(str(error).split())]
    reading = _Reading()
    settings = reading.settings({} if document is None else document)
    return (None, reading.mistakes) if reading.mistakes else (settings, [])


class _Reading:
    """Goes on after a mistake, so that all are told at once."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []

    def settings(self, document: object) -> AlertingSettings:
        found = self._mapping(document, "the document", _KEYS)
        usual = self._rhythm(found, "", Rhythm())
        allow = self._try(self._allow, found.get("allow", []), AllowList())
        entries = found.get("receivers", [])
        if not isinstance(entries, list):
            self._say("receivers", entries, "a list of receivers is needed")
            entries = []
        if len(entries) > MAX_RECEIVERS:
            self._say("receivers", len(entries), f"at most {MAX_RECEIVERS} receivers")
        receivers = [
            receiver
            for number, entry in enumerate(entries[:MAX_RECEIVERS])
            if (receiver := self._receiver(entry, f"receivers[{number}]", usual)) is not None
        ]
        names = [receiver.name for receiver in receivers]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._say("receivers", name, "each receiver has a name of its own")
        return AlertingSettings(tuple(receivers), allow)

    def _receiver(self, entry: object, at: str, usual: Rhythm) -> Receiver | None:
        before = len(self.mistakes)
        found = self._mapping(entry, at, _RECEIVER_KEYS)
        name = found.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            limit = "1 to 63 small letters, digits, _ and -, first a letter or a digit"
            self._say(f"{at}.name", name, limit)
        kinds = [kind for kind in ("webhook", "alertmanager") if kind in found]
        if len(kinds) != 1:
            self._say(at, sorted(found), "exactly one of webhook and alertmanager")
            return None
        kind = kinds[0]
        rhythm = self._rhythm(found, at + ".", usual)
        if kind == "alertmanager" and any(key in found for key in _RHYTHM_KEYS):
            self._say(at, sorted(found), "Alertmanager groups and repeats by itself")
        keys = _WEBHOOK_KEYS if kind == "webhook" else _ALERTMANAGER_KEYS
        way = self._mapping(found[kind], f"{at}.{kind}", keys)
        at = f"{at}.{kind}"
        target = self._try(lambda url: self._target(url, at, kind), way.get("url", ""), None)
        none: tuple[tuple[str, str], ...] = ()
        headers = self._try(lambda given: self._headers(given, at), way.get("headers", {}), none)
        timeout_ms = self._duration(way, "timeout", at + ".", _DEFAULT_TIMEOUT_MS, 100, 60_000)
        secret_file = way.get("secret_file", "")
        if not isinstance(secret_file, str) or (secret_file and not secret_file.startswith("/")):
            self._say(f"{at}.secret_file", secret_file, "the absolute path of a file")
        if kind == "webhook" and "match" not in found:
            rhythm = replace(rhythm, match=_WORTH_A_MESSAGE)
        if kind == "alertmanager":
            resend_ms = self._duration(way, "resend", at + ".", _DEFAULT_RESEND_MS, 1_000, 240_000)
            rhythm = replace(rhythm, group_by=(), repeat_ms=resend_ms, parts=True)
        if len(self.mistakes) > before or target is None:
            return None
        return Receiver(
            str(name), kind, target, rhythm, headers, str(secret_file), timeout_ms / 1000
        )

    def _rhythm(self, found: Mapping[str, Any], at: str, usual: Rhythm) -> Rhythm:
        group_by = found.get("group_by", list(usual.group_by))
        if (
            not isinstance(group_by, list)
            or len(group_by) > MAX_LABELS
            or not all(isinstance(name, str) and _LABEL.fullmatch(name) for name in group_by)
        ):
            limit = f"a list of at most {MAX_LABELS} names of labels, or [{EACH}] for each alert"
            self._say(f"{at}group_by", group_by, limit)
            group_by = []
        match = found.get("match", [])
        return Rhythm(
            group_by=tuple(group_by),
            wait_ms=self._duration(found, "group_wait", at, usual.wait_ms, 0, 3_600_000),
            interval_ms=self._duration(
                found, "group_interval", at, usual.interval_ms, 1_000, _DAY_MS
            ),
            repeat_ms=self._duration(
                found, "repeat_interval", at, usual.repeat_ms, 1_000, 30 * _DAY_MS
            ),
            match=self._try(lambda m: parse_matchers(m, f"{at}match"), match, ())
            if self._are_texts(match, f"{at}match") and match
            else (),
        )

    def _duration(
        self, found: Mapping[str, Any], key: str, at: str, usual: int, least: int, most: int
    ) -> int:
        given = found.get(key)
        if given is None:
            return usual
        if given == 0 and least == 0:
            return 0
        if not isinstance(given, str):
            self._say(f"{at}{key}", given, "a duration such as 30s, 5m or 4h")
            return usual
        return self._try(
            lambda text: parse_duration_ms(text, field=at + key, least_ms=least, most_ms=most),
            given,
            usual,
        )

    def _target(self, url: object, at: str, kind: str) -> Target:
        if not isinstance(url, str):
            raise InvalidInput(f"{at}.url", url, "http:// or https:// is needed")
        target = parse_url(url, f"{at}.url")
        if kind == "alertmanager":
            path = target.path.rstrip("/").removesuffix(_ALERTS_PATH) + _ALERTS_PATH
            return replace(target, path=path)
        return target

    def _headers(self, given: object, at: str) -> tuple[tuple[str, str], ...]:
        sound = isinstance(given, dict) and all(
            isinstance(text, str) for pair in given.items() for text in pair
        )
        if not sound:
            raise InvalidInput(f"{at}.headers", given, "a mapping of names to texts")
        assert isinstance(given, dict)
        return parse_headers(given, f"{at}.headers")

    def _allow(self, given: object) -> AllowList:
        if not self._are_texts(given, "allow"):
            return AllowList()
        assert isinstance(given, list)
        return AllowList.parse(",".join(given), "allow")

    def _are_texts(self, given: object, field: str) -> bool:
        if isinstance(given, list) and all(isinstance(item, str) for item in given):
            return True
        self._say(field, given, "a list of texts")
        return False

    def _mapping(self, given: object, at: str, keys: frozenset[str]) -> Mapping[str, Any]:
        if not isinstance(given, dict):
            self._say(at, given, "a mapping with " + ", ".join(sorted(keys)))
            return {}
        for key in given:
            if key not in keys:
                self._say(at, key, "the keys are " + ", ".join(sorted(keys)))
        return {key: value for key, value in given.items() if key in keys}

    def _try(self, read: Callable[[Any], T], given: object, otherwise: T) -> T:
        try:
            return read(given)
        except (InvalidInput, ConfigurationError) as error:
            self._note(str(error))
            return otherwise

    def _say(self, field: str, value: object, limit: str) -> None:
        self._note(f"{field}: {quoted(value)} is not accepted; {limit}")

    def _note(self, sentence: str) -> None:
        if len(self.mistakes) < _MAX_MISTAKES:
            self.mistakes.append(sentence)


def parse(text: str, source: str) -> AlertingSettings:
    """Raises ConfigurationError naming `source` and the first mistake."""
    settings, mistakes = check(text)
    if settings is None:
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise ConfigurationError(source, "the document", mistakes[0] + more)
    return settings


def secret_files(settings: AlertingSettings) -> Sequence[str]:
    """Files that the settings name; a change of one counts as a change of the document."""
    return sorted({r.secret_file for r in settings.receivers if r.secret_file})
