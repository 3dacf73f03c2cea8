"""How fast a whole embedded cluster is, seen by one REST client.

python benchmarks/end_to_end.py --tasks 10000 --agents 2 [--runs 3] [--json]

Each run has a cluster of its own on a fresh folder: it is started, stopped, started again
(`ready_s`), asked for tasks one after another (`latency_ms_*`), then for all tasks at once
(`tasks_per_s`, from the first submission until every result has been gathered and checked), and
weighed (`rss_mib`, the PSS of all its processes after that load). Redis syncs every write
(`appendfsync always`, as read from the running server). Figures are medians over the runs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import queue
import statistics
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measured_cluster import (
    MeasuredCluster,
    describe_machine,
    describe_versions,
)

# Small enough that placing starts while the rest is still being sent.
BATCH_TASKS = 1000
WARM_UP_TASKS = 300
LATENCY_TASKS = 500
CALL_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run."""

    tasks_per_s: float
    latency_ms_median: float
    latency_ms_p99: float
    ready_s: float
    first_start_s: float
    rss_mib: float
    # Of all processes of the cluster, for each task of the batch load.
    cpu_ms_per_task: float
    cpu_ms_per_task_of: dict[str, float]


_BY_PART = "cpu_ms_per_task_of"
_FIGURES = tuple(field.name for field in fields(Figures))


class Client:
    """One keep-alive connection. Cheaper than a full HTTP library, so the cluster is measured."""

    def __init__(self, url: str, api_key: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=CALL_TIMEOUT_S)
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: bytes | None = None, key: str = "") -> bytes:
        """The body of a 2xx answer; anything else ends the benchmark."""
        headers = self._headers | ({"Idempotency-Key": key} if key else {})
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        answer = response.read()
        if not 200 <= response.status < 300:
            raise SystemExit(f"{method} {path}: {response.status} {answer[:500]!r}")
        return answer

    def close(self) -> None:
        self._connection.close()


def main() -> None:
    options = _options()
    runs: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=options.folder) as folder:
        machine = describe_machine(Path(folder))
        for number in range(options.runs):
            cluster = MeasuredCluster(Path(folder) / f"{number}" / "state", agents=options.agents)
            cluster.state_dir.mkdir(parents=True)
            try:
                runs.append(_measure(cluster, options.tasks, options.cpu))
                versions = describe_versions(cluster)
                appendfsync = cluster.redis_facts().get("appendfsync", "unknown")
            finally:
                cluster.stop()
            print(f"run {number + 1}/{options.runs}: {asdict(runs[-1])}", file=sys.stderr)
    columns = {name: [getattr(run, name) for run in runs] for name in _FIGURES if name != _BY_PART}
    by_part = [run.cpu_ms_per_task_of for run in runs]
    summary: dict[str, Any] = {
        **{name: round(statistics.median(column), 3) for name, column in columns.items()},
        _BY_PART: {
            part: round(statistics.median(run.get(part, 0.0) for run in by_part), 3)
            for part in by_part[0]
        },
        "spread": {
            name: [round(min(column), 3), round(max(column), 3)] for name, column in columns.items()
        },
        "tasks": options.tasks,
        "agents": options.agents,
        "runs": options.runs,
        "task_cpu": options.cpu or "default",
        "appendfsync": appendfsync,
        "machine": machine,
        "versions": versions,
    }
    if options.json:
        print(json.dumps(summary))
    else:
        _print_table(summary)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000, help="of the batch load")
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument(
        "--cpu",
        default="10m",
        help="that each task asks for (default: 10m; '' = Muster's own, 100m)",
    )
    parser.add_argument("--runs", type=int, default=3, help="each on a fresh cluster")
    parser.add_argument("--folder", type=Path, help="where state directories are made")
    parser.add_argument("--json", action="store_true", help="one JSON line on stdout")
    options = parser.parse_args()
    for name in ("tasks", "agents", "runs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: {getattr(options, name)} is not accepted; at least 1")
    return options


def _measure(cluster: MeasuredCluster, tasks: int, cpu: str) -> Figures:
    cluster.start()
    first_start_s = cluster.ready_s
    cluster.stop()
    cluster.start()
    _batch_load(cluster, WARM_UP_TASKS, cpu)
    latencies_ms = _latencies_ms(cluster)
    cpu_before = cluster.cpu_s()
    took_s = _batch_load(cluster, tasks, cpu)
    cpu_after = cluster.cpu_s()
    cpu_ms = {
        part: round((used - cpu_before.get(part, 0.0)) * 1000 / tasks, 4)
        for part, used in sorted(cpu_after.items())
    }
    return Figures(
        tasks_per_s=tasks / took_s,
        latency_ms_median=statistics.median(latencies_ms),
        latency_ms_p99=statistics.quantiles(latencies_ms, n=100)[98],
        ready_s=cluster.ready_s,
        first_start_s=first_start_s,
        rss_mib=cluster.pss_mib(),
        cpu_ms_per_task=sum(cpu_ms.values()),
        cpu_ms_per_task_of=cpu_ms,
    )


def _latencies_ms(cluster: MeasuredCluster) -> list[float]:
    """Submit to result, one task after another on one connection."""
    client = Client(cluster.url, cluster.api_key)
    taken: list[float] = []
    for number in range(LATENCY_TASKS):
        body = orjson.dumps({"skill": "echo", "input": {"n": number}})
        began = time.perf_counter()
        ident = orjson.loads(client.call("POST", "/v1/tasks", body))["id"]
        answer = client.call("GET", f"/v1/tasks/{ident}/result?wait=30s")
        taken.append((time.perf_counter() - began) * 1000)
        if not answer:
            raise SystemExit(f"task {ident} has no result")
    client.close()
    return taken


def _batch_load(cluster: MeasuredCluster, tasks: int, cpu: str = "") -> float:
    """Seconds from the first submission until the last result was gathered; checks each."""
    wants = {"resources": {"cpu": cpu}} if cpu else {}
    bodies = [
        orjson.dumps(
            {"tasks": [{"skill": "echo", "input": {"n": n}, **wants} for n in range(at, upto)]},
        )
        for at in range(0, tasks, BATCH_TASKS)
        for upto in [min(at + BATCH_TASKS, tasks)]
    ]
    submitted: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()

    def submit() -> None:
        client = Client(cluster.url, cluster.api_key)
        try:
            for body in bodies:
                answer = client.call("POST", "/v1/tasks", body, key=str(uuid.uuid4()))
                submitted.put(orjson.loads(answer)["ids"])
        finally:
            submitted.put(None)
            client.close()

    began = time.perf_counter()
    sender = threading.Thread(target=submit)
    sender.start()
    client = Client(cluster.url, cluster.api_key)
    answers: dict[str, Any] = {}
    order: list[str] = []
    while (ids := submitted.get()) is not None:
        order.extend(ids)
        _gather(client, ids, answers)
    took_s = time.perf_counter() - began
    sender.join()
    client.close()
    wrong = [n for n, ident in enumerate(order) if answers[ident] != {"n": n}]
    if len(order) != tasks or len(set(order)) != tasks or wrong:
        raise SystemExit(f"{len(set(order))} of {tasks} results came, {len(wrong)} are wrong")
    return took_s


def _gather(client: Client, ids: list[str], answers: dict[str, Any]) -> None:
    open_ids = ids
    while open_ids:
        body = orjson.dumps({"ids": open_ids, "wait": "30s"})
        for line in client.call("POST", "/v1/results", body).splitlines():
            item = orjson.loads(line)
            if "open" in item:
                open_ids = item["open"]
            elif item["state"] == "SUCCEEDED":
                answers[item["id"]] = item["result"]
            else:
                raise SystemExit(f"a task did not succeed: {line!r}")


def _print_table(summary: dict[str, Any]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    machine, versions = summary["machine"], summary["versions"]
    table = Table(
        title=f"{summary['tasks']:,} tasks (cpu: {summary['task_cpu']}), {summary['agents']} agents"
    )
    for column in ("figure", "median", f"spread of {summary['runs']} runs"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, (low, high) in summary["spread"].items():
        table.add_row(name, f"{summary[name]:,.2f}", f"{low:,.2f} … {high:,.2f}")
    console.print(table)
    parts = sorted(summary[_BY_PART].items(), key=lambda part: -part[1])
    console.print("CPU ms per task: " + ", ".join(f"{name} {ms:.3f}" for name, ms in parts))
    console.print(
        f"Machine: {machine['cores']} × {machine['cpu']}, {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, {machine['file_system']} (fdatasync {machine['fsync_ms']} ms); "
        f"appendfsync {summary['appendfsync']}"
    )
    console.print("Versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()))


if __name__ == "__main__":
    main()
