"""What the demo prints at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.smart_manufacturing.images import Parts


@dataclass
class Run:
    """All that happened. `ids` are in the order of the images, `held` were the victim's."""

    url: str
    ids: list[str] = field(default_factory=list)
    results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    victim: str = ""
    held: list[str] = field(default_factory=list)
    # Of the victim: before it was killed, and after; 0 = it has not come back.
    incarnations: tuple[int, int] = (0, 0)
    before_kill: int = 0
    before_kill_s: float = 0.0
    seconds: float = 0.0
    cluster_restarts: int = 0
    retries: int = 0

    def only_results(self) -> list[dict[str, Any]]:
        """The one result of each image, in the order of the images."""
        return [self.results[ident][0] for ident in self.ids]


def print_report(console: Console, parts: Parts, run: Run) -> None:
    _print_result(console, parts, run)
    _print_who(console, run)
    _print_killed(console, run)
    if run.cluster_restarts or run.retries:
        console.print(
            f"On the way {run.retries} calls were repeated and `muster up` was started again "
            f"{run.cluster_restarts} times."
        )
    _print_further(console, run)


def accuracy(parts: Parts, digits: list[int], indices: list[int]) -> float:
    """Share of the images at `indices` that were read as labelled."""
    return sum(digits[i] == int(parts.labels[i]) for i in indices) / len(indices)


def _print_result(console: Console, parts: Parts, run: Run) -> None:
    digits = [int(result["result"]["digit"]) for result in run.only_results()]
    unseen = [int(i) for i in parts.unseen]
    console.print(
        f"\n[bold green]{len(digits):,} of {len(run.ids):,} images have exactly one result.[/]"
    )
    console.print(
        f"Accuracy on the {len(unseen)} images that the model was not trained on: "
        f"[bold]{accuracy(parts, digits, unseen):.2%}[/]"
    )
    console.print(
        f"Throughput: {run.before_kill / run.before_kill_s:,.0f} images/s until the kill; "
        f"the last result came {run.seconds - run.before_kill_s:.1f} s after it, "
        f"{run.seconds:.1f} s after the first image was sent."
    )


def _print_who(console: Console, run: Run) -> None:
    done = Counter(task["agent"] for task in run.tasks)
    again = Counter(task["agent"] for task in run.tasks if task["attempt"] > 1)
    table = Table(title="Who did what", title_justify="left")
    for column in ("agent", "images", "share", "of these taken over"):
        table.add_column(column, justify="left" if column == "agent" else "right")
    for agent, count in sorted(done.items()):
        note = " (killed)" if agent == run.victim else ""
        table.add_row(
            agent + note, f"{count:,}", f"{count / len(run.tasks):.1%}", str(again[agent])
        )
    console.print(table)


def _print_killed(console: Console, run: Run) -> None:
    by_id = {task["id"]: task for task in run.tasks}
    held = [by_id[ident] for ident in run.held]
    moved = Counter(task["agent"] for task in held if task["attempt"] > 1)
    in_time = sum(task["attempt"] == 1 for task in held)
    console.print(f"[bold]{run.victim}[/] held {len(held)} images when it was killed:")
    for agent, count in sorted(moved.items()):
        where = "itself, once it was back" if agent == run.victim else agent
        console.print(f"  {count} went back to the queue and were read by {where}")
    if in_time:
        console.print(f"  {in_time} had been read: their results were already on their way")
    before, after = run.incarnations
    if after:
        console.print(
            f"  it came back by itself as incarnation {after} (before: {before}); "
            f"whatever incarnation {before} might still say is refused"
        )
    else:
        console.print("  it has not come back yet")
    others = sum(task["attempt"] > 1 for task in run.tasks) - sum(moved.values())
    if others:
        console.print(f"  {others} further images were given to an agent more than once")


def _print_further(console: Console, run: Run) -> None:
    console.print(f"\nThe REST address was {run.url}. A cluster of your own, from this folder:")
    for command, what in (
        ("up --agents 4 --skills examples.smart_manufacturing.skills --detach", "start it"),
        ('submit echo --input \'{"hello": "world"}\' --wait', "give it a task"),
        ("agents", "see who is there"),
        ("tasks", "see what was done"),
        ("down", "stop it"),
    ):
        console.print(f"  .venv/bin/muster {command}  [dim]# {what}[/]")
