"""How one agent is configured: environment, defaults from the machine, and one place of checks.

| variable | meaning | default |
|---|---|---|
| MUSTER_AGENT_ID | the agent's id | host name and a hash of the folder |
| MUSTER_STATE_DIR | the agent's folder (instance key, slot table, scratch) | ./muster-agent |
| MUSTER_REGISTRY | registry addresses, host:port, comma list | needed |
| MUSTER_JOIN_SECRET | the cluster's secret | needed |
| MUSTER_SKILLS | modules or path/to/file.py, comma list | none |
| MUSTER_AGENT_BUILTIN | offer echo, sleep, command, http, chat: 1 or 0 | 1 |
| MUSTER_AGENT_COMMANDS | programs that `command` may run, comma list; empty = none | any |
| MUSTER_AGENT_CPU, _MEMORY, _NETWORK | capacity, as quantities | the machine's; network 1G |
| MUSTER_AGENT_SLOTS | attempts held at once | 64 |
| MUSTER_AGENT_RESOURCES | more capacity: gpu=2,chat_per_minute=600 | none |
| MUSTER_AGENT_LABELS | zone=a,disk=ssd | none |
| MUSTER_AGENT_PASS_ENV | variables that skills and commands may see; NAME or PREFIX* | none |
| MUSTER_AGENT_DRAIN_S | how long running attempts may finish at SIGTERM | 30 |
| MUSTER_AGENT_MAX_RESULT | largest result of an attempt | 64Mi |
| MUSTER_AGENT_ADDRESS_SPACE | RLIMIT_AS of what runs tasks; 0 = none | 0 |
| MUSTER_AGENT_MAX_FILES | RLIMIT_NOFILE of what runs tasks | 4096 |
| MUSTER_OUTBOUND_ALLOW | what `http` and `chat` may call besides the Internet | none |
| MUSTER_CHAT_* | the provider of `chat`, see muster.skills.chat_settings | none |
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from muster.agent.devices import DeviceNames
from muster.domain.errors import ConfigurationError, InvalidInput
from muster.domain.ids import AgentId, parse_agent_id
from muster.domain.quantity import Unit, parse_quantity
from muster.domain.resources import DEFAULT_AGENT_SLOTS, ResourceVector
from muster.domain.task import parse_labels
from muster.skills.chat_settings import SKILL_VARIABLES, check_environment

# More attempts than this on one loop are slower than on several agents.
MAX_SLOTS: Final = 4_096
MIN_SECRET_CHARS: Final = 16
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_MAX_DRAIN_S: Final = 24 * 3600.0
# What programs need to work at all; nothing of it is a secret.
PASSED_ENV: Final = (
    "PATH",
    "HOME",
    "LANG",
    "LC_*",
    "TZ",
    "USER",
    "LOGNAME",
    "VIRTUAL_ENV",
    "PYTHON*",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "OMP_NUM_THREADS",
)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One agent. `commands` None = any program."""

    id: AgentId
    state_dir: Path
    registry: tuple[str, ...]
    secret: str = dataclasses.field(repr=False)
    capacity: ResourceVector
    skills: tuple[str, ...] = ()
    builtin: bool = True
    commands: tuple[str, ...] | None = None
    labels: tuple[tuple[str, str], ...] = ()
    pass_env: tuple[str, ...] = ()
    drain_s: float = 30.0
    max_result_bytes: int = 64 * 1024 * 1024
    address_space_bytes: int = 0
    max_files: int = 4_096

    @property
    def slots(self) -> int:
        """Attempts held at once."""
        return self.capacity.get("slots")

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **overrides: Any) -> Self:
        """Reads the variables of the table above.

        `overrides` are values of the same names, in lower case and without MUSTER_ or
        MUSTER_AGENT_ (`id`, `registry`, `skills`, `cpu`, `drain_s`, …); None is ignored,
        lists and mappings are taken where the variable has commas. Raises ConfigurationError
        naming the variable.
        """
        values = {name: text for name, text in environ.items() if name.startswith("MUSTER_")}
        for name, value in overrides.items():
            if value is not None:
                values[_VARIABLES[name]] = _as_text(value)
        check_environment(values)
        config = cls(**_parsed(values))
        DeviceNames(config.capacity, environ)
        return config

    def to_json(self) -> bytes:
        """For the runtime, which the supervisor hands it through a pipe."""
        import orjson  # noqa: PLC0415  the supervisor needs it once

        plain = dataclasses.asdict(self)
        plain["state_dir"] = str(self.state_dir)
        plain["capacity"] = self.capacity.as_dict()
        return orjson.dumps(plain)

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """The inverse of `to_json`."""
        import orjson  # noqa: PLC0415  as above

        plain = orjson.loads(content)
        plain["state_dir"] = Path(plain["state_dir"])
        plain["capacity"] = ResourceVector.of(plain["capacity"])
        plain["labels"] = tuple((k, v) for k, v in plain["labels"])
        for name in ("registry", "skills", "pass_env"):
            plain[name] = tuple(plain[name])
        if plain["commands"] is not None:
            plain["commands"] = tuple(plain["commands"])
        return cls(**plain)

    def task_environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What skills and commands see of the agent's own environment."""
        patterns = (*PASSED_ENV, *self.pass_env)
        exact = {p for p in patterns if not p.endswith("*")}
        prefixes = tuple(p[:-1] for p in patterns if p.endswith("*"))
        kept = {n: v for n, v in environ.items() if n in exact or n.startswith(prefixes)}
        kept.setdefault("PATH", os.defpath)
        kept.setdefault("LANG", "C.UTF-8")
        # Tasks are the unit of parallelism; a numeric library in each must not take all cores.
        kept.setdefault("OMP_NUM_THREADS", "1")
        # Devices are for those that were given some.
        return kept | DeviceNames(self.capacity, environ).hidden()

    def skill_environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What skills see: as tasks do, and what the built-in ones are configured with."""
        own = {name: environ[name] for name in SKILL_VARIABLES if name in environ}
        return self.task_environ(environ) | own


_VARIABLES: Final[Mapping[str, str]] = {
    "state_dir": "MUSTER_STATE_DIR",
    "registry": "MUSTER_REGISTRY",
    "join_secret": "MUSTER_JOIN_SECRET",
    "skills": "MUSTER_SKILLS",
    **{
        name: f"MUSTER_AGENT_{name.upper()}"
        for name in (
            "id",
            "builtin",
            "commands",
            "cpu",
            "memory",
            "network",
            "slots",
            "resources",
            "labels",
            "pass_env",
            "drain_s",
            "max_result",
            "address_space",
            "max_files",
        )
    },
}


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, Mapping):
        return ",".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ",".join(str(v) for v in value)
    return str(value)


def _parsed(values: Mapping[str, str]) -> dict[str, Any]:
    state_dir = Path(values.get("MUSTER_STATE_DIR") or "muster-agent").absolute()
    registry = _words(values.get("MUSTER_REGISTRY", ""))
    if not registry:
        raise ConfigurationError(
            "MUSTER_REGISTRY", "", "addresses of the registry are needed: host:port,host:port"
        )
    for address in registry:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65_536):
            raise ConfigurationError("MUSTER_REGISTRY", address, "host:port is needed")
    secret = values.get("MUSTER_JOIN_SECRET", "")
    if len(secret) < MIN_SECRET_CHARS:
        raise ConfigurationError(
            "MUSTER_JOIN_SECRET",
            "…" if secret else "",
            f"the cluster's secret of at least {MIN_SECRET_CHARS} characters is needed",
        )
    ident = values.get("MUSTER_AGENT_ID") or _default_id(state_dir)
    commands = values.get("MUSTER_AGENT_COMMANDS")
    return {
        "id": _checked("MUSTER_AGENT_ID", ident, lambda: parse_agent_id(ident)),
        "state_dir": state_dir,
        "registry": registry,
        "secret": secret,
        "capacity": _capacity(values),
        "skills": _words(values.get("MUSTER_SKILLS", "")),
        "builtin": _flag(values, "MUSTER_AGENT_BUILTIN"),
        "commands": None if commands is None else _words(commands),
        "labels": _labels(values.get("MUSTER_AGENT_LABELS", "")),
        "pass_env": _words(values.get("MUSTER_AGENT_PASS_ENV", "")),
        "drain_s": _duration(values, "MUSTER_AGENT_DRAIN_S", 30.0),
        "max_result_bytes": _amount(values, "MUSTER_AGENT_MAX_RESULT", "64Mi", Unit.BYTE, 1024),
        "address_space_bytes": _amount(values, "MUSTER_AGENT_ADDRESS_SPACE", "0", Unit.BYTE, 0),
        "max_files": _amount(values, "MUSTER_AGENT_MAX_FILES", "4096", Unit.COUNT, 64),
    }


def _checked(key: str, value: object, parse: Any) -> Any:
    try:
        return parse()
    except InvalidInput as error:
        raise ConfigurationError(key, value, error.limit) from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def _pairs(key: str, text: str) -> dict[str, str]:
    pairs = {}
    for word in _words(text):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigurationError(key, word, "name=value is needed, in a comma list")
        pairs[name.strip()] = value.strip()
    return pairs


def _labels(text: str) -> tuple[tuple[str, str], ...]:
    key = "MUSTER_AGENT_LABELS"
    pairs = _pairs(key, text)
    labels: tuple[tuple[str, str], ...] = _checked(key, text, lambda: parse_labels(pairs))
    return labels


def _flag(values: Mapping[str, str], key: str) -> bool:
    text = values.get(key, "1")
    if text not in ("0", "1"):
        raise ConfigurationError(key, text, "1 or 0")
    return text == "1"


def _duration(values: Mapping[str, str], key: str, default_s: float) -> float:
    text = values.get(key)
    if text is None:
        return default_s
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _DURATION_UNITS[match[2] or ""] if match else -1.0
    if not 0 <= seconds <= _MAX_DRAIN_S:
        raise ConfigurationError(key, text, "a duration from 0s to 24h, such as 500ms, 30s or 5m")
    return seconds


def _amount(values: Mapping[str, str], key: str, default: str, unit: Unit, least: int) -> int:
    text = values.get(key) or default
    amount: int = _checked(key, text, lambda: parse_quantity(text, field=key, unit=unit))
    if amount < least:
        raise ConfigurationError(key, text, f"at least {least}")
    return amount


def _capacity(values: Mapping[str, str]) -> ResourceVector:
    amounts: dict[str, str | int | float] = {
        "cpu": values.get("MUSTER_AGENT_CPU") or len(os.sched_getaffinity(0)),
        "memory": values.get("MUSTER_AGENT_MEMORY") or _machine_memory_bytes(),
        "network": values.get("MUSTER_AGENT_NETWORK") or "1G",
        "slots": values.get("MUSTER_AGENT_SLOTS") or DEFAULT_AGENT_SLOTS,
    }
    more = _pairs("MUSTER_AGENT_RESOURCES", values.get("MUSTER_AGENT_RESOURCES", ""))
    for name in more:
        if name in amounts:
            raise ConfigurationError(
                "MUSTER_AGENT_RESOURCES", name, f"MUSTER_AGENT_{name.upper()} sets this one"
            )
    vectors: dict[str, ResourceVector] = {}
    for name, quantity in {**amounts, **more}.items():
        key = f"MUSTER_AGENT_{name.upper()}" if name in amounts else "MUSTER_AGENT_RESOURCES"

        def parse(n: str = name, q: str | int | float = quantity) -> ResourceVector:
            return ResourceVector.parse({n: q})

        vectors[name] = _checked(key, quantity, parse)
        if name in ("cpu", "memory", "slots") and not vectors[name].get(name):
            raise ConfigurationError(key, quantity, "an agent's capacity must be above zero")
    total = sum(vectors.values(), ResourceVector())
    if total.get("slots") > MAX_SLOTS:
        raise ConfigurationError(
            "MUSTER_AGENT_SLOTS", total.get("slots"), f"must be from 1 to {MAX_SLOTS}"
        )
    return total


def _machine_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _default_id(state_dir: Path) -> AgentId:
    host = re.sub(r"[^-a-z0-9.]", "-", socket.gethostname().lower()).strip("-.")[:48] or "agent"
    tail = hashlib.sha256(str(state_dir).encode()).hexdigest()[:6]
    return AgentId(f"{host}-{tail}")
