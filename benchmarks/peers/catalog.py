"""What is measured: each peer's packages, driver, variants and settings. Data only."""

from __future__ import annotations

from dataclasses import dataclass

# Redis as the peers run it; Muster always syncs every write.
NO_REDIS = ""
AOF_OFF = "Redis, AOF off"
AOF_ALWAYS = "Redis, appendfsync always"
WITH_REDIS = (AOF_OFF, AOF_ALWAYS)
# Where a task is when its submission returns.
KEPT = {NO_REDIS: "in memory", AOF_OFF: "in Redis' memory", AOF_ALWAYS: "on disk, synced"}


@dataclass(frozen=True, slots=True)
class Case:
    """A way of dying in the middle of the work; `settings` are of this case only."""

    name: str
    settings: str


@dataclass(frozen=True, slots=True)
class Peer:
    """One system.

    `packages` are what pip is asked for, exact so that a table can be measured again; empty
    means that Muster's own environment is used. `reported` are the distributions whose version
    is shown.
    """

    name: str
    title: str
    environment: str
    driver: str
    packages: tuple[str, ...]
    reported: tuple[str, ...]
    variants: tuple[str, ...]
    cases: tuple[Case, ...]
    settings: str
    driver_args: tuple[str, ...] = ()


_WORKERS = (Case("workers", ""),)
# The timeout after which a dead worker's tasks are given out again: as it comes, and as short as
# half-second tasks allow with a wide margin.
DEFAULTS, SHORT = "defaults", "short"
# taskiq looks for a dead worker's tasks only after it has fetched new ones.
SHORT_BUSY = "short, busy"

PEERS = (
    Peer(
        name="muster",
        title="Muster",
        environment="",
        driver="muster_driver",
        packages=(),
        reported=("muster-cluster",),
        variants=(AOF_ALWAYS,),
        cases=(
            Case("all agents", "both agents with all their processes"),
            Case("one agent", "one of two agents with all its processes"),
            Case("one runtime", "the runtime of one of two agents; its supervisor lives"),
        ),
        settings="defaults; two agents, no-ops of the batch ask for cpu 10m, naps for all cores",
    ),
    Peer(
        name="ray-tasks",
        title="Ray tasks",
        environment="ray",
        driver="ray_driver",
        packages=("ray==2.60.0",),
        reported=("ray",),
        variants=(NO_REDIS,),
        cases=_WORKERS,
        settings="num_cpus=2; max_retries 3, the default",
    ),
    Peer(
        name="ray-actors",
        title="Ray actors",
        environment="ray",
        driver="ray_driver",
        driver_args=("actors",),
        packages=("ray==2.60.0",),
        reported=("ray",),
        variants=(NO_REDIS,),
        cases=_WORKERS,
        settings="2 actors in turn; max_restarts=-1, max_task_retries=-1",
    ),
    Peer(
        name="taskiq",
        title="taskiq",
        environment="taskiq",
        driver="taskiq_driver",
        packages=(
            *("taskiq[orjson]==0.13.0", "taskiq-redis==1.2.4"),
            *("redis==8.1.0", "hiredis==3.5.0", "uvloop==0.22.1"),
        ),
        reported=("taskiq", "taskiq-redis", "redis"),
        variants=WITH_REDIS,
        cases=(
            Case(DEFAULTS, "idle_timeout 10 min, the default"),
            Case(SHORT, "idle_timeout=15 s, unacknowledged_lock_timeout=15 s"),
            Case(SHORT_BUSY, "the same, and a no-op is submitted every second"),
        ),
        settings="RedisStreamBroker, acknowledged when saved (default), uvloop; 2 processes of "
        "100 async tasks; client: 64 calls at once; naps: 1 async task, xread_count=1",
    ),
    Peer(
        name="dramatiq",
        title="dramatiq",
        environment="dramatiq",
        driver="dramatiq_driver",
        packages=("dramatiq[redis]==2.2.1", "redis==8.1.0", "hiredis==3.5.0"),
        reported=("dramatiq", "redis"),
        variants=WITH_REDIS,
        cases=(
            Case(DEFAULTS, "heartbeat_timeout 60 s, maintenance_chance 0.1 %, the defaults"),
            Case(SHORT, "heartbeat_timeout=15 s, maintenance_chance=10 %"),
        ),
        settings="acknowledged after the run (default), 20 retries (default); 2 processes of 8 "
        "threads (default); naps: 1 thread",
    ),
    Peer(
        name="celery",
        title="Celery",
        environment="celery",
        driver="celery_driver",
        packages=("celery[redis]==5.7.0", "redis==8.1.0", "hiredis==3.5.0"),
        reported=("celery", "kombu", "redis"),
        variants=WITH_REDIS,
        cases=(
            Case(DEFAULTS, "visibility_timeout 1 h, the default"),
            Case(
                SHORT,
                "visibility_timeout=15 s, unacked_restore_interval=1 s, unacked_restore_throttle=1",
            ),
        ),
        settings="task_acks_late, task_reject_on_worker_lost; prefork of 2, prefetch 64, -O fair, "
        "no gossip, no mingle; naps: prefetch 1",
    ),
    Peer(
        name="dask",
        title="Dask distributed",
        environment="dask",
        driver="dask_driver",
        packages=("distributed==2026.8.0",),
        reported=("distributed",),
        variants=(NO_REDIS,),
        cases=_WORKERS,
        settings="LocalCluster, 2 processes of 1 thread, dashboards off; allowed-failures 3 "
        "(default)",
    ),
    Peer(
        name="pool",
        title="Python's process pool",
        environment="",
        driver="pool_driver",
        packages=(),
        reported=(),
        variants=(NO_REDIS,),
        cases=_WORKERS,
        settings="ProcessPoolExecutor(2), one future per task",
    ),
)


def chosen(only: str) -> tuple[Peer, ...]:
    """Those that `only` names, by name or by environment ("ray" is both kinds); "" is all.

    Raises ValueError naming what is not known.
    """
    words = [word.strip() for word in only.split(",") if word.strip()]
    known = {peer.name for peer in PEERS} | {peer.environment for peer in PEERS if peer.environment}
    if unknown := [word for word in words if word not in known]:
        raise ValueError(
            f"--only: {', '.join(unknown)} is not accepted; any of {', '.join(sorted(known))}"
        )
    return tuple(
        peer for peer in PEERS if not words or peer.name in words or peer.environment in words
    )
