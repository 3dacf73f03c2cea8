"""What a service keeps in storage: the values of one tenant of its own."""

from __future__ import annotations

from typing import Any

from muster.api.v1 import storage_pb2, storage_pb2_grpc
from muster.domain.ids import TenantId
from muster.rpc.channels import ServiceChannel

# Of one listing.
_LISTED = 1000
_Data = storage_pb2_grpc.DataServiceStub


class TenantValues:
    """Raises MusterErrors as `ServiceChannel.call` does; `timeout_s` is each call's deadline."""

    def __init__(self, storage: ServiceChannel, tenant: TenantId, timeout_s: float = 5.0) -> None:
        self._storage = storage
        self._tenant = tenant
        self._timeout_s = timeout_s

    async def get(self, key: str) -> storage_pb2.GetValueResponse:
        """`value` is empty and `found` is false where there is none."""
        request = storage_pb2.GetValueRequest(tenant=self._tenant, key=key)
        answer: storage_pb2.GetValueResponse = await self.call("GetValue", request)
        return answer

    async def put(
        self,
        key: str,
        value: bytes,
        content_type: str = "application/json",
        *,
        if_match: str = "",
        only_new: bool = False,
        retry: bool = True,
    ) -> storage_pb2.PutValueResponse:
        """`written` is false when there is another etag than `if_match` or, with `only_new`, any;
        a `retry` may have met what it had written itself."""
        request = storage_pb2.PutValueRequest(
            tenant=self._tenant,
            key=key,
            value=value,
            content_type=content_type,
            if_match=if_match,
            if_none_match=only_new,
        )
        answer: storage_pb2.PutValueResponse = await self.call("PutValue", request, retry=retry)
        return answer

    async def delete(self, key: str) -> None:
        request = storage_pb2.DeleteValueRequest(tenant=self._tenant, key=key)
        await self.call("DeleteValue", request)

    async def keys(self, prefix: str) -> list[str]:
        """All keys with a prefix, in order."""
        keys: list[str] = []
        cursor = ""
        while True:
            request = storage_pb2.ListValuesRequest(
                tenant=self._tenant, prefix=prefix, cursor=cursor, limit=_LISTED
            )
            answer: storage_pb2.ListValuesResponse = await self.call("ListValues", request)
            keys += answer.keys
            cursor = answer.next
            if not cursor:
                return sorted(keys)

    async def call(self, method: str, request: object, *, retry: bool = True) -> Any:
        """Another method of the DataService."""
        return await self._storage.call(
            _Data, method, request, timeout_s=self._timeout_s, retry=retry
        )
