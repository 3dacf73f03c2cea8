"""Recoveries beyond the core: their records in storage, events, figures, what was learned.

All of it lies under a tenant of its own, RECOVERY_TENANT:

    value records/<id>   one recovery as JSON (`core.recovery_record`), written when it changes
    value learned        JSON of the planner's beliefs, restart budgets and what moves take

Each leader reads both when it begins. A record that another leader left open is closed as
`interrupted`: what followed is in the records of the leader that met the agent anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import orjson
import structlog

from muster.domain.errors import InvalidInput, MusterError
from muster.domain.ids import TenantId
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import boot_s, wall_ms
from muster.rpc.tenant_values import TenantValues
from muster_scheduler import metrics
from muster_scheduler.core.recoveries import Recovery
from muster_scheduler.core.recovery_record import OPEN, plain_record
from muster_scheduler.core.state import ClusterState
from muster_scheduler.publisher import Publisher

_LOG = structlog.get_logger("muster.scheduler")

# No client's: keys are made for the tenant of their maker.
RECOVERY_TENANT = TenantId("muster-recovery")
_RECORDS, _LEARNED = "records/", "learned"
# Records that are kept, and for how long.
MAX_RECORDS = 500
MAX_RECORD_AGE_MS = 7 * 24 * 3600 * 1000
# A record of a recovery with 32 actions has some 40 KiB; storage takes 1 MiB.
MAX_LEARNED_BYTES = 900 * 1024
_WRITE_EVERY_S = 0.5
_LEARNED_EVERY_S = 5.0


class RecoveryKeeper:
    """One leader's records, the oldest first in `records`."""

    def __init__(
        self, storage: ServiceChannel, term: int, state: ClusterState, publisher: Publisher
    ) -> None:
        self.records: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._values = TenantValues(storage, RECOVERY_TENANT)
        self._term = term
        self._state = state
        self._publisher = publisher
        self._dirty: dict[str, None] = {}
        self._gone: dict[str, None] = {}
        self._told: dict[str, str] = {}
        self._wake = asyncio.Event()

    def take(self, recoveries: Iterable[Recovery]) -> None:
        """Recoveries that began, ended or have another action."""
        for recovery in dict.fromkeys(recoveries):
            agent = self._state.agents.get(recovery.agent)
            known = agent.record if agent is not None else None
            tenant = (known.spec.tenant if known is not None else "") or "default"
            record = plain_record(recovery, tenant, self._term)
            before = self.records.get(recovery.id)
            if before is not None and before["outcome"] != OPEN:
                continue
            self.records[recovery.id] = record
            self._dirty[recovery.id] = None
            if record["outcome"] != OPEN:
                metrics.RECOVERIES.labels(record["action"], record["outcome"]).inc()
            self._tell(recovery, record)
        while len(self.records) > MAX_RECORDS:
            ident, _ = self.records.popitem(last=False)
            self._dirty.pop(ident, None)
            self._gone[ident] = None
        self._wake.set()

    def _tell(self, recovery: Recovery, record: dict[str, Any]) -> None:
        """An event when it begins, when the action is another one, and when it is over."""
        note = f"{record['id']} {recovery.action or record['action']} {record['outcome']}"
        if self._told.get(recovery.id) == note:
            return
        self._told[recovery.id] = note
        if record["outcome"] != OPEN:
            del self._told[recovery.id]
        why = record["sentence"]
        if record["outcome"] == OPEN and recovery.actions:
            why = recovery.actions[-1]["sentence"]
        self._publisher.agent_recovery(recovery.agent, recovery.incarnation, note, why)
        _LOG.info("recovery", agent=recovery.agent, outcome=record["outcome"], why=why)

    # -------------------------------------------------------------------- keep

    async def run(self) -> None:
        """Loads, then writes what has changed, until cancelled."""
        failures, loaded = 0, False
        written_s = boot_s()
        while True:
            try:
                if not loaded:
                    await self._load()
                    loaded = True
                await self._write()
                if boot_s() - written_s >= _LEARNED_EVERY_S:
                    written_s = boot_s()
                    await self._write_learned()
            except MusterError as error:
                if failures == 0:
                    _LOG.warning("records of recoveries cannot be kept yet", reason=str(error))
                failures += 1
                await asyncio.sleep(full_jitter(failures, last_s=10.0))
                continue
            failures = 0
            try:
                async with asyncio.timeout(_LEARNED_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()
            # What changes within this is written once.
            await asyncio.sleep(_WRITE_EVERY_S)

    async def _load(self) -> None:
        learned = (await self._values.get(_LEARNED)).value
        if learned:
            try:
                self._state.recoveries.take_over(orjson.loads(learned))
            except (orjson.JSONDecodeError, InvalidInput, TypeError, ValueError) as error:
                _LOG.error(
                    "what was learned of recoveries is not understood",
                    why=str(error),
                    do="nothing: it begins to learn anew",
                )
        keys = await self._values.keys(_RECORDS)
        oldest_ms = wall_ms() - MAX_RECORD_AGE_MS
        kept = [key for key in keys if _began_ms(key) >= oldest_ms][-MAX_RECORDS:]
        self._gone.update(dict.fromkeys(k.removeprefix(_RECORDS) for k in set(keys) - set(kept)))
        found: OrderedDict[str, dict[str, Any]] = OrderedDict()
        for key in kept:
            ident = key.removeprefix(_RECORDS)
            if ident in self.records:
                continue
            try:
                record = orjson.loads((await self._values.get(key)).value)
            except orjson.JSONDecodeError as error:
                _LOG.error("a record of a recovery is not understood", key=key, why=str(error))
                self._gone[ident] = None
                continue
            found[ident] = record
            if record.get("outcome") == OPEN:
                record |= {"outcome": "interrupted", "ended_at_ms": wall_ms()}
                record["sentence"] += " Then another leader took over and met the agent anew."
                self._dirty[ident] = None
        self.records = OrderedDict(sorted({**found, **self.records}.items()))

    async def _write(self) -> None:
        while self._dirty:
            ident = next(iter(self._dirty))
            record = self.records.get(ident)
            if record is not None:
                await self._values.put(f"{_RECORDS}{ident}", orjson.dumps(record))
            # Another change of it meanwhile comes with a wake of its own.
            self._dirty.pop(ident, None)
            if self.records.get(ident) is not record:
                self._dirty[ident] = None
        while self._gone:
            ident = next(iter(self._gone))
            await self._values.delete(f"{_RECORDS}{ident}")
            del self._gone[ident]

    async def _write_learned(self) -> None:
        book = self._state.recoveries
        if not book.changed_beliefs:
            return
        book.changed_beliefs = False
        try:
            await self._values.put(_LEARNED, _bounded(book.to_plain()))
        except MusterError:
            book.changed_beliefs = True
            raise


def _began_ms(key: str) -> int:
    number = key.removeprefix(_RECORDS).partition("-")[0]
    return int(number) if number.isdigit() else 0


def _bounded(plain: dict[str, Any]) -> bytes:
    """As JSON; agents that were not heard of for longest are left out where it is too large."""
    encoded = orjson.dumps(plain)
    while len(encoded) > MAX_LEARNED_BYTES:
        # The cluster's own counts stand first, under no name.
        names = [name for name in plain["beliefs"] if name]
        kept = set(names[len(names) // 2 + 1 :]) | {""}
        budgets = list(plain["budgets"].items())
        plain = plain | {
            "beliefs": {n: counts for n, counts in plain["beliefs"].items() if n in kept},
            "budgets": dict(budgets[len(budgets) // 2 + 1 :]),
        }
        encoded = orjson.dumps(plain)
    return encoded
