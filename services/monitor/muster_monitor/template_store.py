"""The kinds of error lines that are known, kept in storage so that a restart does not forget them.

One value for all monitors, MONITOR_TENANT's `log-templates`: plain JSON, `{"version": 1,
"templates": ["disk <n> failed", …]}`, oldest first. Each monitor adds what it has learnt to what it
finds there and writes on a match of the ETag.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import orjson
import structlog

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import storage_pb2_grpc
from muster.domain.errors import MusterError
from muster.domain.ids import TenantId
from muster.rpc.channels import ServiceChannel, full_jitter
from muster_monitor.log_analysis.analysis import LogAnalysis
from muster_monitor.log_analysis.templates import MAX_TEMPLATES

_LOG = structlog.get_logger("muster.monitor")
_Data = storage_pb2_grpc.DataServiceStub

# No client's: keys are made for the tenant of their maker.
MONITOR_TENANT = TenantId("muster-monitor")
TEMPLATES_KEY = "log-templates"
SAVE_EVERY_S = 30.0
_CALL_TIMEOUT_S = 5.0
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
        self._storage = storage
        self._loaded = False

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                if not self._loaded:
                    answer = await self._get()
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
            found = await self._get()
            for text in decode(found.value):
                templates.remember(text)
            templates.changed = False
            answer = await self._put(encode(templates.texts()), found)
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

    async def _get(self) -> Any:
        request = pb.GetValueRequest(tenant=MONITOR_TENANT, key=TEMPLATES_KEY)
        return await self._storage.call(
            _Data, "GetValue", request, timeout_s=_CALL_TIMEOUT_S, retry=True
        )

    async def _put(self, encoded: bytes, found: Any) -> Any:
        request = pb.PutValueRequest(
            tenant=MONITOR_TENANT,
            key=TEMPLATES_KEY,
            value=encoded,
            content_type="application/json",
            if_match=found.etag if found.found else "",
            if_none_match=not found.found,
        )
        return await self._storage.call(_Data, "PutValue", request, timeout_s=_CALL_TIMEOUT_S)
