"""`make demo`: a real cluster reads 1,797 images, loses an agent half way, and misses nothing.

python -m examples.smart_manufacturing.demo
"""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.smart_manufacturing.cluster import ClusterFailed, DemoCluster
from examples.smart_manufacturing.images import Parts, load_parts
from examples.smart_manufacturing.report import Run, print_report
from examples.smart_manufacturing.rest import Rest, RestFailed

AGENTS = 4
SKILL = "inspect_digit"
SKILLS_MODULE = "examples.smart_manufacturing.skills"
REPOSITORY = Path(__file__).resolve().parents[2]
# Listings come in pages; this is the largest.
PAGE = 1000
# A killed agent is back, or known to be gone, well within this.
COMEBACK_TIMEOUT_S = 30.0
POLL_S = 0.2


class DemoFailed(Exception):
    """What the demo promises did not hold."""


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    console.rule("[bold]Muster: visual inspection of 1,797 parts")
    parts = load_parts()
    cluster = DemoCluster(agents=AGENTS, skills=SKILLS_MODULE, work_dir=REPOSITORY)
    rest = Rest(cluster)
    try:
        run = _story(console, parts, cluster, rest)
        print_report(console, parts, run)
    except (ClusterFailed, RestFailed, DemoFailed) as error:
        console.print(f"[bold red]The demo failed:[/] {error}")
        console.print(f"Logs: {cluster.log_dir}")
        cluster.stop()
        return 1
    except KeyboardInterrupt:
        cluster.stop()
        cluster.remove()
        return 130
    finally:
        rest.close()
    cluster.stop()
    cluster.remove()
    console.print("\nThe cluster has stopped and its temporary folder is gone.")
    return 0


def _story(console: Console, parts: Parts, cluster: DemoCluster, rest: Rest) -> Run:
    began = time.monotonic()
    with console.status("Starting etcd, Redis, five services and four agents …"):
        cluster.start()
    console.print(
        f"Ready after {time.monotonic() - began:.1f} s: {cluster.url} (logs: {cluster.log_dir})"
    )
    run = Run(url=cluster.url)
    incarnations = {agent["id"]: agent["incarnation"] for agent in _agents(rest)}
    began = time.monotonic()
    run.ids = _submit(rest, parts)
    console.print(
        f"Submitted {len(run.ids):,} images in {time.monotonic() - began:.2f} s; "
        "each acknowledged task is on disk."
    )
    with _progress(console) as progress:
        bar = progress.add_task("inspected", total=len(run.ids))
        for result in rest.results(run.ids):
            run.results.setdefault(result["id"], []).append(result)
            progress.advance(bar)
            if not run.victim and len(run.results) * 2 >= len(run.ids):
                run.before_kill = len(run.results)
                run.before_kill_s = time.monotonic() - began
                _kill_one(run, cluster, rest)
                progress.console.print(
                    f"[red]SIGKILL[/] for {run.victim} with its supervisor; "
                    f"it held {len(run.held)} images."
                )
    run.seconds = time.monotonic() - began
    run.tasks = rest.all_items("/v1/tasks", {"skill": SKILL, "limit": PAGE})
    _check(run)
    run.incarnations = (
        incarnations.get(run.victim, 0),
        _wait_for_comeback(rest, run.victim, incarnations.get(run.victim, 0)),
    )
    run.cluster_restarts, run.retries = cluster.restarts, rest.retries
    return run


def _agents(rest: Rest) -> list[dict[str, Any]]:
    return rest.all_items("/v1/agents", {"limit": PAGE})


def _submit(rest: Rest, parts: Parts) -> list[str]:
    """Ids in the order of the images; a repeated call with this key submits nothing twice."""
    tasks = [
        {"skill": SKILL, "input": parts.as_input(index), "labels": {"image": str(index)}}
        for index in range(len(parts.labels))
    ]
    answer = rest.call(
        "POST",
        "/v1/tasks",
        body={"tasks": tasks},
        headers={"Idempotency-Key": f"demo-{uuid.uuid4()}"},
    )
    return [str(ident) for ident in answer["ids"]]


def _kill_one(run: Run, cluster: DemoCluster, rest: Rest) -> None:
    """Kills the agent that holds the most work, and notes what it held."""
    give_up = time.monotonic() + COMEBACK_TIMEOUT_S
    while time.monotonic() < give_up:
        holding = [task["agent"] for task in _unfinished(rest)]
        if not holding:
            holding = [agent["id"] for agent in _agents(rest)]
        run.victim = max(sorted(set(holding)), key=holding.count, default="")
        if cluster.kill_agent(run.victim):
            # A task may be met twice when it begins to run between the two listings.
            held = (task["id"] for task in _unfinished(rest) if task["agent"] == run.victim)
            run.held = list(dict.fromkeys(held))
            return
        # Somebody else killed it, or all of the cluster, just now.
        cluster.revive()
        time.sleep(POLL_S)
    raise DemoFailed("no agent was found that could be killed")


def _unfinished(rest: Rest) -> list[dict[str, Any]]:
    return [
        task
        for state in ("ASSIGNED", "RUNNING")
        for task in rest.all_items("/v1/tasks", {"state": state, "limit": PAGE})
    ]


def _check(run: Run) -> None:
    """Raises DemoFailed unless every image has exactly one result."""
    if len(set(run.ids)) != len(run.ids):
        raise DemoFailed("two images got one id")
    if doubled := [ident for ident, results in run.results.items() if len(results) != 1]:
        raise DemoFailed(f"{len(doubled)} images have several results")
    if missing := [ident for ident in run.ids if ident not in run.results]:
        raise DemoFailed(f"{len(missing)} images have no result")
    if failed := [r for r in run.only_results() if r["state"] != "SUCCEEDED"]:
        raise DemoFailed(f"{len(failed)} images were not read, the first: {failed[0]}")
    if {task["id"] for task in run.tasks} != set(run.ids) or len(run.tasks) != len(run.ids):
        raise DemoFailed(f"{len(run.ids)} tasks were submitted, the cluster has {len(run.tasks)}")


def _wait_for_comeback(rest: Rest, agent: str, before: int) -> int:
    """The incarnation under which the killed agent works again; 0 when it stays away."""
    give_up = time.monotonic() + COMEBACK_TIMEOUT_S
    while time.monotonic() < give_up:
        for seen in _agents(rest):
            if seen["id"] == agent and seen["incarnation"] > before and seen["state"] == "READY":
                return int(seen["incarnation"])
        time.sleep(POLL_S)
    return 0


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


if __name__ == "__main__":
    sys.exit(main())
