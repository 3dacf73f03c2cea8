"""The kinds of error lines that are known, kept in storage so that a restart does not forget them.

One value for all monitors, MONITOR_TENANT's `log-templates`: plain JSON, `{"version": 1,
"templates": ["disk <n> failed", …]}`, oldest first. Each monitor adds what it has learnt to what it
finds there and writes on a match of the ETag.
"""

from __future__ import annotations

import asyncio

import msgspec
import orjson
import structlog

from muster.domain.errors import MusterError
from muster.domain.ids import TenantId
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.tenant_values import TenantValues
from muster_monitor.log_analysis.analysis import LogAnalysis
from muster_monitor.log_analysis.templates import MAX_TEMPLATES

_LOG = structlog.get_logger("muster.monitor")

# No client's: keys are made for the tenant of their maker.
MONITOR_TENANT = TenantId("muster-monitor")
TEMPLATES_KEY = "log-templates"
SAVE_EVERY_S = 30.0
# Another monitor may have written in between, but not again and again.
_TRIES = 3


class _Kept(msgspec.Struct):
    version: int
    templates: list[str]


def decode(encoded: bytes) -> list[str]:
    """The templates of a stored value; none when it is not ours or damaged."""
    try:
        kept = msgspec.json.decode(encoded, type=_Kept)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []
    return kept.templates[-MAX_TEMPLATES:] if kept.version == 1 else []


def encode(templates: list[str]) -> bytes:
    return orjson.dumps({"version": 1, "templates": templates[-MAX_TEMPLATES:]})


class TemplateStore:
    """Loads once storage answers, then saves what changed, until cancelled."""

    def __init__(self, lines: LogAnalysis, storage: ServiceChannel) -> None:
        self._lines = lines
        self._values = TenantValues(storage, MONITOR_TENANT)
        self._loaded = False

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                if not self._loaded:
                    answer = await self._values.get(TEMPLATES_KEY)
                    self._lines.recall(decode(answer.value))
                    self._lines.templates.changed = False
                    self._loaded = True
                await self.save()
                failures = 0
                await asyncio.sleep(SAVE_EVERY_S)
            except MusterError as error:
                if failures == 0:
                    _LOG.warning("log templates are not in storage yet", reason=str(error))
                failures += 1
                await asyncio.sleep(full_jitter(failures, 0.5, SAVE_EVERY_S))

    async def save(self) -> None:
        """Joins what is known here and there; does nothing while nothing is new here."""
        templates = self._lines.templates
        if not (self._loaded and templates.changed):
            return
        for _ in range(_TRIES):
            found = await self._values.get(TEMPLATES_KEY)
            for text in decode(found.value):
                templates.remember(text)
            templates.changed = False
            answer = await self._values.put(
                TEMPLATES_KEY,
                encode(templates.texts()),
                if_match=found.etag,
                only_new=not found.found,
                retry=False,
            )
            if answer.written:
                return
            templates.changed = True

    async def drain(self, within_s: float) -> None:
        """A last save, at the end of the process."""
        try:
            async with asyncio.timeout(within_s):
                await self.save()
        except (TimeoutError, MusterError) as error:
            _LOG.warning("the newest log templates were not kept", reason=str(error))
