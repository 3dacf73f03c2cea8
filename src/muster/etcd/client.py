"""Unary etcd calls with deadlines, several endpoints, bounded retries and Muster's own errors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from math import ceil
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc

from muster.domain.errors import InvalidInput, MusterError, NotFound, Unavailable
from muster.etcd import wire
from muster.etcd.keyvalue import EtcdStatus, KeyValue, KeyVersion
from muster.etcd.retry import Backoff, Failure, RetryBudget, classify, may_repeat

__all__ = ["EtcdClient", "EtcdStatus", "KeyValue", "KeyVersion"]

# Inside the class, `EtcdClient.list` hides the built-in.
KeyValues: TypeAlias = list[KeyValue]
_Messages: TypeAlias = list[wire.Message]

# One answer of etcd stays far under the largest message accepted, with values of up to 16 KiB.
PAGE_KEYS = 1000

# A member that restarts is back within a second or so.
_BACKOFF = Backoff(first_s=0.1, max_s=1.0)


class _NoRevisionError(MusterError):
    """etcd has compacted the revision away or has not reached it."""


class _Link:
    """A channel to one endpoint and the calls on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.methods = wire.unary_methods(channel)


class EtcdClient:
    """All calls raise `Unavailable` when etcd does not carry them out within `timeout_s`.

    A write that raised may have been carried out all the same. Keys are text, values bytes.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout_s: float = 3.0,
        credentials: grpc.ChannelCredentials | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if isinstance(endpoints, str) or not endpoints:
            raise InvalidInput("etcd endpoints", endpoints, "there must be a list of at least one")
        self._endpoints = tuple(endpoints)
        self._timeout_s = timeout_s
        self._credentials = credentials
        self._chance = chance
        self._budget = RetryBudget()
        self._links: list[_Link] = []
        self._preferred = 0
        self._retired: dict[asyncio.Task[None], _Link] = {}

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._endpoints

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    async def open(self) -> None:
        """Makes the channels; connects at the first call."""
        if not self._links:
            self._links = [_Link(self._open_channel(endpoint)) for endpoint in self._endpoints]

    async def close(self) -> None:
        """Calls under way end with `Unavailable`."""
        links, self._links = self._links, []
        retired, self._retired = self._retired, {}
        for task in retired:
            task.cancel()
        await asyncio.gather(*retired, return_exceptions=True)
        links.extend(retired.values())
        await asyncio.gather(*(link.channel.close() for link in links))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def dial(self, attempt: int) -> grpc.aio.Channel:
        """A channel of its own for a stream; the caller closes it.

        Growing `attempt` walks through the endpoints, beginning with the one that last answered.
        """
        index = (self._preferred + attempt) % len(self._endpoints)
        return self._open_channel(self._endpoints[index])

    # ------------------------------------------------------------ keys

    async def get(self, key: str) -> KeyValue | None:
        request = wire.range_request(key.encode(), b"")
        answer = await self._call("Range", request, repeatable=True)
        return wire.key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> tuple[KeyValues, int]:
        """All keys under `prefix` in key order, as they were at the returned revision."""
        start = prefix.encode()
        kvs, revision = await self.list_range(start, wire.prefix_end(start))
        return kvs, revision

    async def list_range(self, start: bytes, end: bytes) -> tuple[KeyValues, int]:
        """Keys from `start` to before `end`; an empty `end` means `start` alone."""
        try:
            messages, revision = await self._pages(start, end)
        except _NoRevisionError as exc:
            raise Unavailable("etcd", "it was compacted while it was listed") from exc
        return [wire.key_value(message) for message in messages], revision

    async def list_versions(
        self, start: bytes, end: bytes, revision: int
    ) -> dict[str, KeyVersion] | None:
        """The keys that a range had at `revision`; None when etcd does not have that revision."""
        try:
            messages, _ = await self._pages(start, end, revision=revision, keys_only=True)
        except _NoRevisionError:
            return None
        return {wire.key_value(message).key: wire.key_version(message) for message in messages}

    async def put(self, key: str, value: bytes, lease_id: int = 0) -> int:
        """Writes whatever was there; returns the revision. `NotFound` when the lease is gone."""
        answer = await self._call(
            "Put", wire.put_request(key, value, lease_id), repeatable=False, lease_id=lease_id
        )
        return int(answer.header.revision)

    async def delete(self, key: str) -> bool:
        """Whether there was something to delete."""
        answer = await self._call("DeleteRange", wire.delete_request(key), repeatable=False)
        return bool(answer.deleted)

    async def put_if_absent(
        self, key: str, value: bytes, lease_id: int = 0
    ) -> tuple[bool, KeyValue | None]:
        """(True, what was written) or (False, what is there). `NotFound` when the lease is gone.

        A key that already has this very value and lease counts as written: an earlier attempt
        whose answer was lost has done it.
        """
        request = wire.put_if_revision(key, 0, value, lease_id)
        answer = await self._call("Txn", request, repeatable=lease_id != 0, lease_id=lease_id)
        if answer.succeeded:
            revision = int(answer.header.revision)
            return True, KeyValue(key, value, revision, revision, lease_id)
        present = wire.found_instead(answer)
        return _is_ours(present, value, lease_id), present

    async def compare_and_put(
        self, key: str, value: bytes, mod_revision: int, lease_id: int = 0
    ) -> bool:
        """Writes if the last write was `mod_revision` (0: if absent); says whether it did.

        As for `put_if_absent`, finding this very value and (non-zero) lease counts as written.
        """
        request = wire.put_if_revision(key, mod_revision, value, lease_id)
        answer = await self._call("Txn", request, repeatable=lease_id != 0, lease_id=lease_id)
        return bool(answer.succeeded) or _is_ours(wire.found_instead(answer), value, lease_id)

    async def compare_and_delete(self, key: str, mod_revision: int) -> bool:
        """Whether the key is gone: True also when it was absent already, as after a lost answer."""
        request = wire.delete_if_revision(key, mod_revision)
        answer = await self._call("Txn", request, repeatable=True)
        return bool(answer.succeeded) or wire.found_instead(answer) is None

    # ------------------------------------------------------------ leases and state

    async def grant(self, ttl_s: float) -> int:
        """A new lease of at least `ttl_s`, in whole seconds (etcd itself demands 2 or more)."""
        answer = await self._call("LeaseGrant", wire.grant_request(ceil(ttl_s)), repeatable=True)
        return int(answer.ID)

    async def revoke(self, lease_id: int) -> bool:
        """Ends the lease and deletes its keys; False when it was gone already."""
        request = wire.revoke_request(lease_id)
        try:
            await self._call("LeaseRevoke", request, repeatable=True, lease_id=lease_id)
        except NotFound:
            return False
        return True

    async def status(self) -> EtcdStatus:
        """Of the member that answers; `Unavailable` also while it knows no leader."""
        return wire.status(await self._call("Status", wire.status_request(), repeatable=True))

    async def versions(self) -> dict[str, str]:
        """The version of each member that answers, by endpoint; `Unavailable` when none does."""
        request = wire.status_request()
        answers = await asyncio.gather(
            *(
                self._attempt(index, "Status", request, self._timeout_s)
                for index in range(len(self._endpoints))
            ),
            return_exceptions=True,
        )
        found: dict[str, str] = {}
        for endpoint, answer in zip(self._endpoints, answers, strict=True):
            if not isinstance(answer, BaseException):
                found[endpoint] = wire.status(answer).version
            elif not isinstance(answer, grpc.aio.AioRpcError | Unavailable):
                raise answer
        if not found:
            raise Unavailable("etcd", "no member says its version")
        return found

    # ------------------------------------------------------------ the one place that retries

    async def _pages(
        self, start: bytes, end: bytes, *, revision: int = 0, keys_only: bool = False
    ) -> tuple[_Messages, int]:
        found: _Messages = []
        while True:
            request = wire.range_request(
                start, end, limit=PAGE_KEYS, revision=revision, keys_only=keys_only
            )
            answer = await self._call("Range", request, repeatable=True)
            revision = revision or answer.header.revision
            found.extend(answer.kvs)
            if not answer.more:
                return found, revision
            start = answer.kvs[-1].key + b"\x00"

    async def _call(
        self, name: str, request: wire.Message, *, repeatable: bool, lease_id: int = 0
    ) -> Any:
        ends_at_s = time.monotonic() + self._timeout_s
        attempt = 0
        while True:
            attempt += 1
            index = self._preferred
            left_s = ends_at_s - time.monotonic()
            if repeatable and attempt == 1 and len(self._endpoints) > 1:
                left_s /= 2
            try:
                answer = await self._attempt(index, name, request, left_s)
            except grpc.aio.AioRpcError as exc:
                code, detail = exc.code().name, exc.details() or ""
                failure = classify(code, detail)
                if failure is Failure.NO_LEASE:
                    raise NotFound("etcd lease", f"{lease_id:x}") from exc
                if failure is Failure.NO_SUCH_REVISION:
                    raise _NoRevisionError(detail) from exc
                if failure is not Failure.REFUSED:
                    self._turn_away_from(index)
                pause_s = _BACKOFF.delay_s(attempt, self._chance())
                if (
                    not may_repeat(failure, repeatable, attempt)
                    or time.monotonic() + pause_s >= ends_at_s
                    or not self._budget.take()
                ):
                    raise Unavailable("etcd", f"{name} failed: {code} {detail}".strip()) from exc
            else:
                self._budget.succeeded()
                return answer
            await asyncio.sleep(pause_s)

    async def _attempt(
        self, index: int, name: str, request: wire.Message, timeout_s: float
    ) -> wire.Message:
        if not self._links:
            raise Unavailable("etcd", "this client is not open")
        link = self._links[index]
        try:
            return await link.methods[name](
                request, timeout=timeout_s, metadata=wire.REQUIRE_LEADER
            )
        except grpc.aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._replace(index, link)
            raise
        except asyncio.CancelledError:
            # grpc also raises this when the channel is closed under a call.
            task = asyncio.current_task()
            if task is not None and task.cancelling() == 0:
                raise Unavailable("etcd", "the client was closed during the call") from None
            raise

    def _turn_away_from(self, index: int) -> None:
        if self._preferred == index:
            self._preferred = (index + 1) % len(self._endpoints)

    def _replace(self, index: int, hung: _Link) -> None:
        """Gives later calls a new connection: one that is half open would hang them all."""
        if not self._links or self._links[index] is not hung:
            return
        self._links[index] = _Link(self._open_channel(self._endpoints[index]))
        # Calls of others on the old one may still succeed; none outlives its own deadline.
        task = asyncio.create_task(hung.channel.close(grace=self._timeout_s + 1.0))
        self._retired[task] = hung
        task.add_done_callback(lambda done: self._retired.pop(done, None))

    def _open_channel(self, endpoint: str) -> grpc.aio.Channel:
        return wire.open_channel(endpoint, self._credentials)


def _is_ours(found: KeyValue | None, value: bytes, lease_id: int) -> bool:
    return (
        lease_id != 0 and found is not None and (found.value, found.lease_id) == (value, lease_id)
    )
