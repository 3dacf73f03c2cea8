"""The child processes of an embedded cluster: what each is started with. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path

from muster.local.ports import LOOPBACK, SERVICES, http_port_name, replica_names
from muster.local.redis_file import mend
from muster.local.state import StateDir

# Of the operator's environment, what is meant for his own commands or names other addresses
# must not reach the children; etcd refuses to start when ETCD_* meets a flag.
_WITHHELD_PREFIXES = (
    "ETCD_",
    "MUSTER_URL",
    "MUSTER_API_KEY",
    "MUSTER_PROFILE",
    "MUSTER_ADVERTISE",
    "MUSTER_ETCD_EMBEDDED",
)
# A drain at `down` gives running tasks this long before they go back to the queue.
AGENT_DRAIN_S = 3


class Stage(IntEnum):
    """The order of an orderly end: whoever uses a part ends before it."""

    AGENT = 0
    GATEWAY = 1
    SERVICE = 2
    STORAGE = 3
    REDIS = 4
    ETCD = 5


_SERVICE_STAGE = {"gateway": Stage.GATEWAY, "storage": Stage.STORAGE}
# Redis may have an append-only file to finish, etcd a snapshot.
GRACE_S = {
    Stage.AGENT: AGENT_DRAIN_S + 2.0,
    Stage.GATEWAY: 5.0,
    Stage.SERVICE: 5.0,
    Stage.STORAGE: 5.0,
    Stage.REDIS: 10.0,
    Stage.ETCD: 5.0,
}
# What `down` waits for in the worst case, with room for the kills.
STOP_TIMEOUT_S = sum(GRACE_S.values()) + 10.0


@dataclass(frozen=True, slots=True)
class Part:
    """One child process. `ready_port` answers /readyz; 0 = it has no such answer.

    `may_leave`: exit code 0 is a farewell (a drained agent), not a death. `mend`: what to do before
    it is started again after an error of its own, given its last words and a time stamp.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    stage: Stage
    ready_port: int = 0
    may_leave: bool = False
    mend: Callable[[str, str], str] | None = None


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """All that decides which processes run and with what; paths are absolute.

    `agent_cpu` and `agent_memory` are quantities that each agent offers. `work_dir` is where
    the operator stands: modules of `skills` are found from there. `replicas` is how many
    processes each service has.
    """

    state: StateDir
    ports: Mapping[str, int]
    join_secret: str
    redis_password: str
    python: str
    etcd: str
    redis: str
    agents: int
    agent_cpu: str
    agent_memory: str
    skills: tuple[str, ...]
    work_dir: Path
    environ: Mapping[str, str]
    replicas: int = 1

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def urls(self) -> tuple[str, ...]:
        """Of all gateways."""
        gateways = replica_names("gateway", self.replicas)
        return tuple(f"http://{LOOPBACK}:{self.ports[http_port_name(name)]}" for name in gateways)

    @property
    def agent_ids(self) -> tuple[str, ...]:
        return tuple(f"agent-{number}" for number in range(1, self.agents + 1))

    @property
    def redis_conf(self) -> Path:
        return self.state.run_dir / "redis.conf"


def parts_of(plan: ClusterPlan) -> tuple[Part, ...]:
    """Every child, those that take longest to start first."""
    base = base_environment(plan.environ)
    return (
        _etcd(plan),
        _redis(plan),
        *(
            _service(plan, service, name, base)
            for service in SERVICES
            for name in replica_names(service, plan.replicas)
        ),
        *(_agent(plan, ident, base) for ident in plan.agent_ids),
    )


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What children inherit of the operator's environment."""
    kept = {
        name: value for name, value in environ.items() if not name.startswith(_WITHHELD_PREFIXES)
    }
    # gRPC's threads would each get an arena of their own, mostly empty.
    return {"MALLOC_ARENA_MAX": "2"} | kept


def _at(plan: ClusterPlan, port: str) -> str:
    return f"{LOOPBACK}:{plan.ports[port]}"


def _all(plan: ClusterPlan, service: str) -> str:
    return ",".join(_at(plan, name) for name in replica_names(service, plan.replicas))


def _etcd(plan: ClusterPlan) -> Part:
    client, peer = f"http://{_at(plan, 'etcd')}", f"http://{_at(plan, 'etcd_peer')}"
    argv = (
        plan.etcd,
        "--name=muster",
        f"--data-dir={plan.state.path / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=muster={peer}",
        "--logger=zap",
        "--log-level=warn",
        # A single member elects itself; there is nobody to wait for.
        "--heartbeat-interval=50",
        "--election-timeout=250",
        # Only watches of the last minutes are ever resumed.
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=10m",
        "--snapshot-count=10000",
    )
    env = {
        name: plan.environ[name]
        for name in ("PATH", "HOME", "TMPDIR", "LANG")
        if name in plan.environ
    }
    return Part("etcd", argv, env, plan.state.run_dir, Stage.ETCD)


def _redis(plan: ClusterPlan) -> Part:
    env = {name: plan.environ[name] for name in ("PATH", "HOME", "LANG") if name in plan.environ}
    put_right = partial(mend, plan.state.path / "redis")
    argv = (plan.redis, str(plan.redis_conf))
    return Part("redis", argv, env, plan.state.run_dir, Stage.REDIS, mend=put_right)


def redis_config(plan: ClusterPlan) -> str:
    """Redis' configuration file: every write is on disk before it is answered."""
    return "\n".join(
        [
            f"bind {LOOPBACK}",
            f"port {plan.ports['redis']}",
            "protected-mode yes",
            f"requirepass {plan.redis_password}",
            f"dir {_redis_word(plan.state.path / 'redis')}",
            "daemonize no",
            'logfile ""',
            "databases 1",
            "appendonly yes",
            "appendfsync always",
            "no-appendfsync-on-rewrite no",
            "aof-load-truncated yes",
            "auto-aof-rewrite-percentage 100",
            "auto-aof-rewrite-min-size 64mb",
            "maxmemory-policy noeviction",
            'save ""',
        ]
    )


def _redis_word(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def redis_url(plan: ClusterPlan) -> str:
    """Where storage finds Redis, password included."""
    return f"redis://:{plan.redis_password}@{_at(plan, 'redis')}/0"


def _shared(plan: ClusterPlan) -> dict[str, str]:
    return {
        "MUSTER_JOIN_SECRET": plan.join_secret,
        "MUSTER_REGISTRY": _all(plan, "registry"),
    }


def _service(plan: ClusterPlan, service: str, name: str, base: Mapping[str, str]) -> Part:
    env = {
        **base,
        **_shared(plan),
        "MUSTER_METRICS_LISTEN": _at(plan, f"{name}_metrics"),
        "MUSTER_STATE_DIR": str(plan.state.service_dir(name)),
        "MUSTER_ETCD_ENDPOINTS": _at(plan, "etcd"),
        # One member, and nothing in it that its loss would cost: any version will do.
        "MUSTER_ETCD_EMBEDDED": "1",
        "MUSTER_STORAGE": _all(plan, "storage"),
        "MUSTER_SCHEDULERS": _all(plan, "scheduler"),
        "MUSTER_MONITORS": _all(plan, "monitor"),
    }
    http_port = http_port_name(name)
    if service == "gateway":
        env |= {
            "MUSTER_HTTP_LISTEN": _at(plan, http_port),
            "MUSTER_BOOTSTRAP_KEY_FILE": str(plan.state.key_file),
        }
    else:
        env["MUSTER_LISTEN"] = _at(plan, name)
    if service == "monitor":
        env |= _monitor(plan, base)
    if service == "storage":
        env |= {
            "MUSTER_REDIS_URL": redis_url(plan),
            "MUSTER_BLOB_DIR": str(plan.state.path / "blobs"),
        }
    return Part(
        name,
        # -P: a redis.py where somebody stands must not shadow the real one.
        (plan.python, "-P", "-m", f"muster_{service}"),
        env,
        plan.state.service_dir(name),
        _SERVICE_STAGE.get(service, Stage.SERVICE),
        ready_port=plan.ports[http_port if service == "gateway" else f"{name}_metrics"],
    )


def _monitor(plan: ClusterPlan, base: Mapping[str, str]) -> dict[str, str]:
    """The pages that rules look at, and the operator's rules from where he stands."""
    pages = [
        f"{service}={_at(plan, f'{name}_metrics')}"
        for service in SERVICES
        if service != "monitor"
        for name in replica_names(service, plan.replicas)
    ]
    env = {"MUSTER_MONITOR_SCRAPE": ",".join(pages)}
    if rules := base.get("MUSTER_MONITOR_RULES", ""):
        env["MUSTER_MONITOR_RULES"] = str(plan.work_dir / rules)
    return env


def _agent(plan: ClusterPlan, ident: str, base: Mapping[str, str]) -> Part:
    env = {
        **base,
        **_shared(plan),
        "MUSTER_AGENT_ID": ident,
        "MUSTER_STATE_DIR": str(plan.state.agent_dir(ident)),
        "MUSTER_AGENT_CPU": plan.agent_cpu,
        "MUSTER_AGENT_MEMORY": plan.agent_memory,
        "MUSTER_AGENT_DRAIN_S": str(AGENT_DRAIN_S),
    }
    if plan.skills:
        found = [str(plan.work_dir), *filter(None, [base.get("PYTHONPATH", "")])]
        env |= {"MUSTER_SKILLS": ",".join(plan.skills), "PYTHONPATH": ":".join(found)}
    return Part(
        ident,
        (plan.python, "-P", "-m", "muster.agent"),
        env,
        plan.state.agent_dir(ident),
        Stage.AGENT,
        may_leave=True,
    )
