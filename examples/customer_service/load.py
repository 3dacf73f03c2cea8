"""Sends customers' messages as they arrive, and prints how right and how fast the answers were.

python -m examples.customer_service.load
python -m examples.customer_service.load --trace trace.csv --speed-up 5 --requests 1000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from examples.customer_service.arrivals import TraceUnreadable, from_trace, poisson
from examples.customer_service.intents import Sentence, read_sentences, router, split
from examples.customer_service.report import Served, as_json, print_table, summaries
from examples.smart_manufacturing.cluster import ClusterFailed, DemoCluster
from muster import AsyncClient
from muster.client.errors import ClientError

SKILLS_MODULE: Final = "examples.customer_service.skills"
REPOSITORY: Final = Path(__file__).resolve().parents[2]
MAX_REQUESTS: Final = 100_000
# Past it messages wait here, and their waiting counts.
MAX_IN_FLIGHT: Final = 256
# An answer that takes longer than this is missing.
ANSWER_TIMEOUT_S: Final = 120.0


class LoadFailed(Exception):
    """Messages without an answer; the text says how many, and why the first one."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Exits with 2 on a wrong command line."""
    parser = argparse.ArgumentParser("python -m examples.customer_service.load")
    add = parser.add_argument
    add("--requests", type=int, default=500, metavar="N", help="messages (default 500)")
    add("--trace", type=Path, metavar="CSV", help="arrive as the requests of this trace did")
    add(
        "--rate",
        type=float,
        default=5.0,
        metavar="R",
        help="without a trace: messages a second before the speed-up (default 5)",
    )
    add("--speed-up", type=float, default=5.0, metavar="X", help="default 5")
    add("--seed", type=int, default=1, help="of the messages, and of arrivals without a trace")
    add("--agents", type=int, default=2, metavar="N", help="of the cluster that is started")
    add("--url", help="use this cluster instead; its agents must offer the skills")
    add("--api-key", help="of that cluster (default: MUSTER_API_KEY or the profile)")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args(argv)
    if not 1 <= args.requests <= MAX_REQUESTS:
        parser.error(f"--requests: {args.requests} is not accepted; 1 to {MAX_REQUESTS}")
    for name in ("rate", "speed_up"):
        value = getattr(args, name)
        if not (value > 0 and math.isfinite(value)):
            parser.error(f"--{name.replace('_', '-')}: {value:g} is not accepted; above 0")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console(highlight=False, soft_wrap=True, stderr=args.json)
    try:
        if args.trace is None:
            arrivals = poisson(args.rate, args.requests, args.speed_up, args.seed)
            source = f"a Poisson process, {args.rate:g}/s, seed {args.seed} (no --trace was given)"
        else:
            arrivals = from_trace(args.trace, args.requests, args.speed_up)
            source = f"the first {args.requests} requests of {args.trace.name}"
        trained, held_out = split(read_sentences())
        accuracy = router().accuracy(held_out)
        console.print(
            f"Router: trained on {len(trained)} sentences, right for {accuracy:.1%} "
            f"of {len(held_out)} held-out ones."
        )
        console.print(f"Arrivals: {source}, {args.speed_up:g} times as fast.")
        messages = random.Random(args.seed).choices(held_out, k=args.requests)  # noqa: S311
        with _cluster(args, console) as (url, api_key):
            began = time.monotonic()
            served = asyncio.run(_serve(url, api_key, messages, arrivals))
            seconds = time.monotonic() - began
    except (TraceUnreadable, ClusterFailed, ClientError, LoadFailed) as error:
        console.print(f"[bold red]The load failed:[/] {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    found = summaries(served)
    if args.json:
        print(
            json.dumps(
                {
                    "arrivals": source,
                    "speed_up": args.speed_up,
                    "seconds": round(seconds, 3),
                    "held_out_accuracy": round(accuracy, 4),
                    "table": as_json(found),
                }
            )
        )
        return 0
    offered = len(messages) / arrivals[-1] if arrivals[-1] else math.inf
    console.print(
        f"All {len(served)} messages were answered in {seconds:.1f} s; "
        f"they arrived at {offered:.1f}/s.\n"
    )
    print_table(console, found)
    return 0


@contextmanager
def _cluster(args: argparse.Namespace, console: Console) -> Iterator[tuple[str | None, str | None]]:
    """Address and key of the cluster to use; one that was started here ends here."""
    if args.url:
        yield args.url, args.api_key
        return
    cluster = DemoCluster(agents=args.agents, skills=SKILLS_MODULE, work_dir=REPOSITORY)
    try:
        with console.status("Starting a cluster …"):
            cluster.start()
        console.print(f"A cluster of {args.agents} agents is ready: {cluster.url}")
        yield cluster.url, cluster.api_key
    except ClusterFailed:
        console.print(f"Logs: {cluster.log_dir}")
        raise
    finally:
        cluster.stop()
        cluster.remove()


async def _serve(
    url: str | None, api_key: str | None, messages: list[Sentence], arrivals: list[float]
) -> list[Served]:
    """Sends each message when it arrives, whatever became of those before it."""
    async with AsyncClient(url, api_key) as client:
        await client.run("publish_knowledge", call_timeout=ANSWER_TIMEOUT_S)
        # The first task of a skill starts a process for it; that is no customer's business.
        await client.run("answer", {"message": "Hello"}, call_timeout=ANSWER_TIMEOUT_S)
        room = asyncio.Semaphore(MAX_IN_FLIGHT)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        failures: list[str] = []

        async def one(message: Sentence, arrival_s: float) -> Served | None:
            await asyncio.sleep(began_s + arrival_s - loop.time())
            async with room:
                try:
                    answer: dict[str, Any] = await client.run(
                        "answer", {"message": message.text}, call_timeout=ANSWER_TIMEOUT_S
                    )
                except ClientError as error:
                    failures.append(f"{message.text!r}: {error}")
                    return None
            response_s = loop.time() - began_s - arrival_s
            return Served(message.intent, answer["intent"], answer["escalated"], response_s)

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one(message, arrival_s))
                for message, arrival_s in zip(messages, arrivals, strict=True)
            ]
    if failures:
        raise LoadFailed(f"{len(failures)} messages have no answer, the first: {failures[0]}")
    return [served for task in tasks if (served := task.result()) is not None]


if __name__ == "__main__":
    sys.exit(main())
