"""Muster itself: `muster up` with two agents, seen through REST."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.end_to_end import Client
from benchmarks.measured_cluster import MeasuredCluster
from benchmarks.peers.drivers.measuring import CALL_TIMEOUT_S, NAPS, Ends, Job, Peer, kill, run

_ROOT = Path(__file__).resolve().parents[3]
_SKILLS = "benchmarks.peers.drivers.muster_worker"
_FIGURES = ("tasks_per_s", "latency_ms_median", "latency_ms_p99")
_END_TO_END_TIMEOUT_S = 300.0


class Muster(Peer):
    """Each nap asks for all cores of an agent, so that an agent runs one at a time."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        (job.folder / "cluster").mkdir()
        self._cluster = MeasuredCluster(
            job.folder / "cluster" / "state", agents=job.workers, up_args=("--skills", _SKILLS)
        )
        self._client: Client | None = None
        self._naps: list[str] = []
        self._done: set[int] = set()
        self._failed: set[int] = set()

    def start(self) -> None:
        self._cluster.start()
        self._client = Client(self._cluster.url, self._cluster.api_key)

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
        self._cluster.stop()

    def echo_many(self, count: int) -> Sequence[object]:
        ids = self._submit([{"skill": "echo", "input": number} for number in range(count)])
        answers: dict[str, object] = {}
        give_up = time.monotonic() + CALL_TIMEOUT_S
        while len(answers) < count and time.monotonic() < give_up:
            open_ids = [ident for ident in ids if ident not in answers]
            for item in self._results(open_ids, wait="5s"):
                answers[item["id"]] = item.get("result")
        return [answers.get(ident) for ident in ids]

    def echo(self, number: int) -> object:
        return self.echo_many(1)[number]

    def begin_naps(self) -> None:
        each = {"skill": "nap", "resources": {"cpu": str(psutil.cpu_count())}}
        journal = str(self.job.journal)
        self._naps = self._submit(
            [{**each, "input": {"number": n, "journal": journal}} for n in range(NAPS)]
        )

    def ends(self) -> Ends:
        number_of = {ident: number for number, ident in enumerate(self._naps)}
        known = self._done | self._failed
        open_ids = [ident for ident, number in number_of.items() if number not in known]
        for item in self._results(open_ids, wait="0s") if open_ids else ():
            number = number_of[item["id"]]
            right = item["state"] == "SUCCEEDED" and item["result"] == number
            (self._done if right else self._failed).add(number)
        return Ends(frozenset(self._done), frozenset(self._failed))

    def kill_workers(self) -> str:
        supervisors = sorted(self._cluster.supervisors(), key=lambda found: found.pid)
        if self.job.case == "one runtime":
            runtimes = [
                child
                for child in supervisors[0].children()
                if "muster.agent.runtime_process" in " ".join(child.cmdline())
            ]
            kill(process.pid for process in runtimes)
            return f"{len(runtimes)} of {len(supervisors)} runtimes"
        chosen = supervisors[:1] if self.job.case == "one agent" else supervisors
        trees = [[agent, *agent.children(recursive=True)] for agent in chosen]
        kill(process.pid for tree in trees for process in tree)
        processes = sum(len(tree) for tree in trees)
        return f"{len(chosen)} of {len(supervisors)} agents, {processes} processes"

    def _submit(self, tasks: list[dict[str, Any]]) -> list[str]:
        assert self._client is not None
        body = json.dumps({"tasks": tasks}).encode()
        ids: list[str] = json.loads(self._client.call("POST", "/v1/tasks", body))["ids"]
        return ids

    def _results(self, ids: list[str], wait: str) -> list[dict[str, Any]]:
        assert self._client is not None
        body = json.dumps({"ids": ids, "wait": wait}).encode()
        lines = self._client.call("POST", "/v1/results", body).splitlines()
        return [item for item in map(json.loads, lines) if "open" not in item]


def _speed(job: Job) -> None:
    """The figures of the README's own benchmark, one run."""
    shown = subprocess.run(
        [
            *(sys.executable, str(_ROOT / "benchmarks" / "end_to_end.py"), "--json"),
            *("--runs", "1", "--tasks", str(job.tasks), "--agents", str(job.workers)),
            *("--folder", str(job.folder)),
        ],
        stdout=subprocess.PIPE,
        timeout=_END_TO_END_TIMEOUT_S,
        check=False,
    )
    if shown.returncode != 0:
        # Its own sentence is the last one on stderr, which is ours.
        raise SystemExit(shown.returncode)
    said: dict[str, Any] = json.loads(shown.stdout)
    measured = {name: said[name] for name in _FIGURES}
    versions = {name: said["versions"][name] for name in ("grpcio", "etcd")}
    versions["muster-cluster"] = said["versions"]["muster"]
    print(json.dumps({"measured": {**measured, "versions": versions}}), flush=True)


if __name__ == "__main__":
    asked = Job.parse(sys.argv[1])
    if asked.kind == "speed":
        _speed(asked)
    else:
        run(Muster)
