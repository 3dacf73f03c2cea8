"""`muster up`: prepares the state directory, runs the cluster, tells the user."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from muster.domain.errors import Conflict, MusterError
from muster.local.binaries import find_etcd, find_redis
from muster.local.options import UpOptions, parse_up
from muster.local.parts import ClusterPlan, redis_config
from muster.local.ports import LOOPBACK, PORTS, choose_ports, is_free, port_names
from muster.local.profile import Profile, write_profile
from muster.local.state import (
    ClusterLock,
    Remembered,
    StateDir,
    admin_key,
    load_remembered,
    open_state_dir,
    store_remembered,
    write_private,
)

# Children of a killed parent are dead within milliseconds; a busy machine takes longer.
_PREDECESSOR_S = 3.0
# Another program may take a chosen port before our child does; thrice in a row is no accident.
_PORT_CHOICES = 3
_random = random.SystemRandom()
_FIRST_STEP = 'Try  muster submit echo --input \'{"hello": "world"}\' --wait'
_NO_AGENTS = "Tasks are accepted, and wait until there is an agent: `muster up --agents 1`."


def up(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """The command; returns its exit code."""
    started_s = time.monotonic()
    try:
        options = parse_up(argv, environ)
        _say_starting(options)
        if options.detach:
            return _detached(options, environ, started_s)
        return _serve(options, environ, lambda ready: _say_ready(options, ready, started_s))
    except (MusterError, OSError) as error:
        print(f"muster: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True, slots=True)
class Ready:
    """What the user is told once all runs; the fields of the JSON line, and `new_key`.

    `urls` are those of all gateways, `url` the first of them. `halted`: why nothing is scheduled
    until an operator decides, else empty and not in the JSON line.
    """

    url: str
    api_key: str
    pid: int
    state_dir: str
    log_dir: str
    urls: tuple[str, ...]
    new_key: bool
    halted: str

    def line(self) -> str:
        """The one line of `--json`."""
        shown = asdict(self)
        del shown["new_key"]
        if not self.halted:
            del shown["halted"]
        return json.dumps(shown)


def _serve(
    options: UpOptions, environ: Mapping[str, str], on_ready: Callable[[Ready], None]
) -> int:
    state = open_state_dir(options.state_dir)
    lock = ClusterLock(state)
    lock.acquire()
    try:
        plan = _plan(options, state, lock.taken_over, environ)
        key = admin_key(state)
        for choices_left in reversed(range(_PORT_CHOICES)):
            if (taken := _run(plan, key, environ, on_ready, last=not choices_left)) is None:
                break
            _tell(f"another program has taken port {taken}; starting again on others")
            plan = _with_free_ports(plan, options.port)
    finally:
        lock.release()
    return 0


def _run(
    plan: ClusterPlan,
    key: tuple[str, bool],
    environ: Mapping[str, str],
    on_ready: Callable[[Ready], None],
    *,
    last: bool,
) -> int | None:
    """Runs the cluster to its end; the port that another program took meanwhile, if it did.

    Raises MusterError when it could not start for another reason, or this was the `last` try.
    """
    write_private(plan.redis_conf, redis_config(plan))
    # Imported late: a refusal before this is told at once.
    import asyncio  # noqa: PLC0415

    from muster.local.cluster import run_cluster  # noqa: PLC0415
    from muster.local.nursery import StartFailed  # noqa: PLC0415

    api_key, new_key = key
    path, log_dir = str(plan.state.path), str(plan.state.log_dir)

    def ready(halted: str) -> None:
        _leave_profile(plan, api_key, environ)
        if halted:
            _tell(f"scheduling is halted: {halted}")
        on_ready(Ready(plan.url, api_key, os.getpid(), path, log_dir, plan.urls, new_key, halted))

    try:
        if not asyncio.run(run_cluster(plan, api_key=api_key, on_ready=ready, tell=_tell)):
            raise MusterError("it was stopped before it was ready")
    except StartFailed:
        # Nothing of ours runs any more, so whoever listens there is somebody else.
        taken = next((port for port in plan.ports.values() if not is_free(port)), None)
        if last or taken is None:
            raise
        return taken
    return None


def _plan(
    options: UpOptions, state: StateDir, taken_over: bool, environ: Mapping[str, str]
) -> ClusterPlan:
    etcd, redis = find_etcd(environ), find_redis(environ)
    remembered = load_remembered(state)
    plan = ClusterPlan(
        state=state,
        ports=remembered.ports,
        join_secret=remembered.join_secret,
        redis_password=remembered.redis_password,
        python=sys.executable,
        etcd=str(etcd),
        redis=str(redis),
        agents=options.agents,
        agent_cpu=options.agent_cpu,
        agent_memory=options.agent_memory,
        skills=options.skills,
        work_dir=Path.cwd(),
        environ=environ,
        replicas=options.replicas,
    )
    if taken_over:
        _await_predecessor(plan)
    return _with_free_ports(plan, options.port)


def _with_free_ports(plan: ClusterPlan, http: int | None) -> ClusterPlan:
    """The plan with another port for each that is taken; remembered for the next `up`."""
    ports = choose_ports(
        plan.ports,
        http=http,
        free=is_free,
        pick=lambda: _random.choice(PORTS),
        names=port_names(plan.replicas),
    )
    stored = load_remembered(plan.state).ports
    # What a cluster with fewer replicas has no use for is kept for the next one with more.
    kept = {**stored, **ports}
    if kept != stored:
        store_remembered(plan.state, Remembered(plan.join_secret, plan.redis_password, kept))
    return replace(plan, ports=ports)


def _await_predecessor(plan: ClusterPlan) -> None:
    """After a kill -9 its children may be dying still; two Redis on one file would damage it."""
    give_up_s = time.monotonic() + _PREDECESSOR_S
    while time.monotonic() < give_up_s:
        if all(is_free(port) for port in plan.ports.values()):
            return
        time.sleep(0.02)
    port = plan.ports.get("redis")
    if port is not None and _takes_password(port, plan.redis_password):
        raise Conflict(f"the Redis of an earlier run still answers on port {port}; end it first")


def _takes_password(port: int, password: str) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0) as link:
            link.sendall(f"AUTH {password}\r\n".encode())
            return link.recv(16).startswith(b"+OK")
    except OSError:
        return False


def _leave_profile(plan: ClusterPlan, api_key: str, environ: Mapping[str, str]) -> None:
    try:
        write_profile(Profile(plan.url, api_key, str(plan.state.path), plan.urls[1:]), environ)
    except OSError as error:
        _tell(f"the profile could not be written ({error}); set MUSTER_URL and MUSTER_API_KEY")


def _tell(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


def _say_starting(options: UpOptions) -> None:
    if sys.stderr.isatty() and not options.as_json:
        services = "five services" if options.replicas == 1 else f"{options.replicas} × 5 services"
        parts = f"etcd, Redis, {services} and {_agents(options.agents)}"
        print(f"Starting {parts} …", file=sys.stderr, flush=True)


def _say_ready(options: UpOptions, ready: Ready, started_s: float) -> None:
    try:
        print(ready.line() if options.as_json else _ready_text(options, ready, started_s))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever started it has read enough; that must not end the cluster.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _ready_text(options: UpOptions, ready: Ready, started_s: float) -> str:
    key = ready.api_key if ready.new_key else f"in {ready.state_dir}/admin.key"
    took_s = time.monotonic() - started_s
    what, next_step = "is ready", _FIRST_STEP if options.agents else _NO_AGENTS
    if ready.halted:
        what, next_step = "is up and schedules nothing", _halt_text(ready)
    return (
        f"Muster {what}: {' '.join(ready.urls)} ({_agents(options.agents)}, {took_s:.1f} s)\n"
        f"  API key  {key}\n"
        f"  logs     {ready.log_dir}\n"
        f"  state    {ready.state_dir}\n"
        f"{next_step}\n"
        f"{'`muster down` ends it.' if options.detach else 'Ctrl-C ends it.'}"
    )


def _halt_text(ready: Ready) -> str:
    return (
        f"Halted: {ready.halted}.\n"
        f"To put it right: `muster down`, Redis' newest data into {ready.state_dir}/redis, "
        f"`muster up`.\n"
        "To accept this one: `muster cluster accept-store` says what that means."
    )


def _agents(number: int) -> str:
    return f"{number} agent" + ("" if number == 1 else "s")


def _detached(options: UpOptions, environ: Mapping[str, str], started_s: float) -> int:
    """Runs the cluster in a session of its own; returns when that is ready or has failed."""
    state = open_state_dir(options.state_dir)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.setsid()
        _to_log(state)
        os._exit(_daemon(options, environ, _Report(writing)))
    os.close(writing)
    # Whoever gives up waiting gives up the start.
    signal.signal(signal.SIGINT, lambda *_: os.kill(pid, signal.SIGTERM))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    report = json.loads(text) if text else {"error": f"it died; see {state.log('up')}"}
    if "error" in report:
        raise MusterError(report["error"])
    _say_ready(options, Ready(**report), started_s)
    return 0


class _Report:
    """The detached process's one word to the command that waits for it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ready(self, ready: Ready) -> None:
        self._send(asdict(ready))

    def failed(self, error: MusterError | OSError) -> None:
        self._send({"error": str(error)})

    def _send(self, record: dict[str, object]) -> None:
        # The cluster lives on when nobody waits for it any more.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._fd, json.dumps(record).encode())
        os.close(self._fd)


def _daemon(options: UpOptions, environ: Mapping[str, str], report: _Report) -> int:
    try:
        return _serve(options, environ, report.ready)
    except (MusterError, OSError) as error:
        _tell(str(error))
        report.failed(error)
    except BaseException:  # noqa: BLE001 -- past the fork nobody else can say it
        traceback.print_exc()
    return 1


def _to_log(state: StateDir) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(state.log("up"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, fd)
