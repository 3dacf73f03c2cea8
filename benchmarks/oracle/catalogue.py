"""All faults by number."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.oracle import agent_faults as agents
from benchmarks.oracle import crowd_faults as crowds
from benchmarks.oracle import partition_faults as partitions
from benchmarks.oracle import power_cut as power
from benchmarks.oracle import service_faults as services
from benchmarks.oracle import stall_faults as stalls
from benchmarks.oracle import store_faults as stores
from benchmarks.oracle.call_sites import CallSites
from benchmarks.oracle.cancel_race import CancelRace
from benchmarks.oracle.overload import Overload
from benchmarks.oracle.scene import Fault

_ALL: tuple[Callable[[], Fault], ...] = (
    services.GatewayKilled,
    services.LeaderKilled,
    services.MonitorKilled,
    services.RegistryKilled,
    services.StorageKilled,
    agents.RuntimeKilled,
    agents.AgentKilled,
    agents.RunnerKilled,
    services.AllKilled,
    agents.AgentPaused,
    services.LeaderPaused,
    services.EtcdPaused,
    stores.RedisPaused,
    stalls.LoopBlocked,
    stores.EtcdDown,
    stores.EtcdCompacted,
    stores.EtcdFull,
    power.EtcdPowerCut,
    power.RedisPowerCut,
    power.WeakRedisPowerCut,
    stores.RedisDiskFull,
    stores.RedisMemoryFull,
    power.StaleReplica,
    partitions.Partitioned,
    partitions.OneWayPartition,
    stalls.LeaderWithoutEtcd,
    partitions.LossyNetwork,
    stalls.Blackhole,
    services.RepliesLost,
    crowds.MostVanish,
    stalls.ClockJumps,
    CancelRace,
    agents.Poison,
    Overload,
    agents.AgentDrained,
    crowds.Flapping,
    CallSites,
)
FAULTS: Mapping[str, Callable[[], Fault]] = {make().number: make for make in _ALL}


def named(text: str) -> list[str]:
    """Numbers for a word of the command line: `all`, `6` (both of its forms), `6a`, `1,2`.

    Raises KeyError with the unknown word.
    """
    if text == "all":
        return list(FAULTS)
    chosen: list[str] = []
    for word in text.split(","):
        found = [number for number in FAULTS if number == word or number.rstrip("ab") == word]
        if not found:
            raise KeyError(word)
        chosen += found
    return chosen
