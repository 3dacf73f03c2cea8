"""What an agent measures each second: itself, its processes, and the machine that it is on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Final

import psutil

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def _process_usage(pid: int) -> tuple[float, int]:
    """Cpu seconds used so far and resident bytes; (0, 0) when the process is gone.

    Read directly, because psutil's objects cost ten times as much for many short-lived runners.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES


class Figures:
    """`pids` gives the agent's processes; all rates are per second since the last sample."""

    def __init__(self, pids: Callable[[], Iterable[int]], disk: str) -> None:
        self._pids, self._disk = pids, disk
        self._at_s = time.monotonic()
        self._cpu_s: dict[int, float] = {}
        self._network = psutil.net_io_counters()
        self._disk_io = psutil.disk_io_counters()
        # The first call of cpu_percent has nothing to compare with.
        psutil.cpu_percent()

    def sample(self) -> dict[str, float]:
        """Names and units as the monitor exports them."""
        now_s = time.monotonic()
        elapsed_s = max(now_s - self._at_s, 1e-3)
        self._at_s = now_s
        usage = {pid: _process_usage(pid) for pid in self._pids()}
        cores = sum(max(0.0, cpu - self._cpu_s.get(pid, cpu)) for pid, (cpu, _) in usage.items())
        self._cpu_s = {pid: cpu for pid, (cpu, _) in usage.items()}
        memory = psutil.virtual_memory()
        figures = {
            "agent_cpu_cores": cores / elapsed_s,
            "agent_memory_bytes": float(sum(resident for _, resident in usage.values())),
            "agent_processes": float(len(usage)),
            "host_cpu_ratio": psutil.cpu_percent() / 100,
            "host_load_1m": os.getloadavg()[0],
            "host_memory_used_bytes": float(memory.total - memory.available),
            "host_memory_ratio": memory.percent / 100,
            "host_disk_ratio": psutil.disk_usage(self._disk).percent / 100,
        }
        network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
        if network is not None and self._network is not None:
            received = network.bytes_recv - self._network.bytes_recv
            sent = network.bytes_sent - self._network.bytes_sent
            figures["host_network_received_bytes_per_s"] = max(0, received) / elapsed_s
            figures["host_network_sent_bytes_per_s"] = max(0, sent) / elapsed_s
        if disk is not None and self._disk_io is not None:
            read = disk.read_bytes - self._disk_io.read_bytes
            written = disk.write_bytes - self._disk_io.write_bytes
            figures["host_disk_read_bytes_per_s"] = max(0, read) / elapsed_s
            figures["host_disk_written_bytes_per_s"] = max(0, written) / elapsed_s
        self._network, self._disk_io = network, disk
        return figures
