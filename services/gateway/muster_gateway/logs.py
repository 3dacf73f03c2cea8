"""Task logs out of the monitors: agents are spread over them, so all are asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from muster.api.v1 import monitor_pb2, monitor_pb2_grpc, task_pb2
from muster.domain.errors import MusterError, Unavailable
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import boot_s
from muster.rpc.status import rpc_errors
from muster_gateway import sse
from muster_gateway.tail import ENDED
from muster_gateway.views import encode, log_line_out
from muster_gateway.watching import WatchBoard

_READ_TIMEOUT_S: Final = 30.0
# The bound of messages between the monitors and a slow client.
_QUEUE: Final = 64
# After the task's end its last lines are on their way for no longer than this.
_GRACE_S: Final = 3.0
_TICK_S: Final = 1.0
# Before a lost monitor is asked again.
_FIRST_PAUSE_S: Final = 0.1
_LAST_PAUSE_S: Final = 2.0


async def read_log(
    monitors: Sequence[ServiceChannel], tenant: str, ident: str, attempt: int
) -> tuple[list[monitor_pb2.LogLine], bool]:
    """All lines by attempt and index, and whether the log was cut at its cap.

    Raises Unavailable when no monitor answers.
    """
    if not monitors:
        raise Unavailable("the monitor", "this gateway knows none")
    answers = await asyncio.gather(
        *(_read_one(monitor, tenant, ident, attempt) for monitor in monitors),
        return_exceptions=True,
    )
    lines: dict[tuple[int, int], monitor_pb2.LogLine] = {}
    truncated = False
    errors: list[BaseException] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            errors.append(answer)
            continue
        truncated = truncated or answer[1]
        for line in answer[0]:
            lines.setdefault((line.attempt, line.index), line)
    for error in errors:
        if len(errors) == len(answers) or not isinstance(error, MusterError):
            raise error
    return [lines[key] for key in sorted(lines)], truncated


async def _read_one(
    monitor: ServiceChannel, tenant: str, ident: str, attempt: int
) -> tuple[list[monitor_pb2.LogLine], bool]:
    lines: list[monitor_pb2.LogLine] = []
    truncated = False
    request = monitor_pb2.ReadLogRequest(tenant=tenant, task_id=ident, attempt=attempt)
    with rpc_errors("the monitor", _READ_TIMEOUT_S):
        call = monitor.stream(
            monitor_pb2_grpc.MonitorServiceStub, "ReadLog", request, timeout_s=_READ_TIMEOUT_S
        )
        try:
            async for response in call:
                lines.extend(response.lines)
                truncated = truncated or response.truncated
        finally:
            call.cancel()
    return lines, truncated


async def follow_log(
    monitors: Sequence[ServiceChannel],
    board: WatchBoard,
    task: task_pb2.Task,
    attempt: int,
) -> AsyncIterator[bytes]:
    """Lines as server-sent events, until the task has ended and its lines have come.

    A monitor that is lost is asked again while another one answers.
    """
    queue: asyncio.Queue[monitor_pb2.ReadLogResponse | MusterError | None] = asyncio.Queue(_QUEUE)
    answering = set(monitors)
    request = monitor_pb2.ReadLogRequest(
        tenant=task.spec.tenant, task_id=task.spec.id, follow=True, attempt=attempt
    )
    pumps = [
        asyncio.create_task(_pump(monitor, request, queue, answering), name="follow a log")
        for monitor in monitors
    ]
    open_pumps = len(pumps)
    seen: set[tuple[int, int]] = set()
    ended = task.status.state in ENDED
    # When something was last sent, and since when the ended task has been quiet.
    sent_at_s = quiet_since_s = boot_s()
    try:
        yield sse.OPENING
        while open_pumps and not (ended and boot_s() - quiet_since_s > _GRACE_S):
            try:
                async with asyncio.timeout(_TICK_S):
                    message = await queue.get()
            except TimeoutError:
                if boot_s() - sent_at_s > sse.HEARTBEAT_S:
                    sent_at_s = boot_s()
                    yield sse.HEARTBEAT
            else:
                if message is None:
                    open_pumps -= 1
                elif isinstance(message, MusterError):
                    yield sse.gap(str(message))
                    return
                else:
                    sent_at_s = quiet_since_s = boot_s()
                    for line in message.lines:
                        if (line.attempt, line.index) not in seen:
                            seen.add((line.attempt, line.index))
                            data = encode(log_line_out(line))
                            yield sse.sse("line", data, f"{line.attempt}-{line.index}")
            if not ended and board.standing(task.spec.tenant, task.spec.id):
                ended, quiet_since_s = True, boot_s()
        yield sse.sse("end", b"{}")
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    monitor: ServiceChannel,
    request: monitor_pb2.ReadLogRequest,
    queue: asyncio.Queue[monitor_pb2.ReadLogResponse | MusterError | None],
    answering: set[ServiceChannel],
) -> None:
    failures = 0
    while True:
        call = monitor.stream(monitor_pb2_grpc.MonitorServiceStub, "ReadLog", request)
        try:
            with rpc_errors("the monitor"):
                async for response in call:
                    answering.add(monitor)
                    failures = 0
                    await queue.put(response)
        except MusterError as error:
            answering.discard(monitor)
            if not (answering and isinstance(error, Unavailable)):
                await queue.put(error)
                return
        else:
            await queue.put(None)
            return
        finally:
            call.cancel()
        failures += 1
        await asyncio.sleep(full_jitter(failures, _FIRST_PAUSE_S, _LAST_PAUSE_S))
