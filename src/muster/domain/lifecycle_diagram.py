"""Draws docs/lifecycles.md from the lifecycle tables, so that page and code cannot part.

python -m muster.domain.lifecycle_diagram docs/lifecycles.md           # write
python -m muster.domain.lifecycle_diagram --check docs/lifecycles.md   # 1 when out of date
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from muster.domain import agent_lifecycle, task_lifecycle

StateT = TypeVar("StateT", bound=StrEnum)
EventT = TypeVar("EventT", bound=StrEnum)

# An event that leads from more states than this makes a diagram a tangle; the table tells it.
_DRAWN_FROM = 4
_COMMAND = "python -m muster.domain.lifecycle_diagram docs/lifecycles.md"


def mermaid(
    transitions: Mapping[tuple[StateT, EventT], StateT], *, start: StateT | None = None
) -> str:
    """A Mermaid `stateDiagram-v2`, one arrow per pair of states, in the order of the table.

    The arrow is labelled with all events that cause it. States without a way out are ends. What
    `from_most_states` names is left out.
    """
    left_out = from_most_states(transitions)
    events_by_arrow: dict[tuple[StateT, StateT], list[EventT]] = {}
    with_way_out = {before for before, _ in transitions}
    for (before, event), after in transitions.items():
        if event in left_out:
            continue
        events_by_arrow.setdefault((before, after), []).append(event)
    ends = dict.fromkeys(after for _, after in events_by_arrow if after not in with_way_out)
    lines = ["stateDiagram-v2"]
    if start is not None:
        lines.append(f"    [*] --> {start.value}")
    for (before, after), events in events_by_arrow.items():
        label = ", ".join(event.value for event in events)
        lines.append(f"    {before.value} --> {after.value}: {label}")
    lines.extend(f"    {end.value} --> [*]" for end in ends)
    return "\n".join(lines) + "\n"


def from_most_states(
    transitions: Mapping[tuple[StateT, EventT], StateT],
) -> dict[EventT, tuple[StateT, ...]]:
    """The events that are possible in many states, with the states that they lead to."""
    seen: dict[EventT, list[StateT]] = {}
    for (_, event), after in transitions.items():
        seen.setdefault(event, []).append(after)
    return {
        event: tuple(dict.fromkeys(afters))
        for event, afters in seen.items()
        if len(afters) > _DRAWN_FROM
    }


def render_page() -> str:
    """The whole text of docs/lifecycles.md."""
    task = _section(
        "A task",
        "Agents report a start in batches, so a fast task may end without having been RUNNING.",
        _picture(task_lifecycle.TRANSITIONS, task_lifecycle.FIRST_STATE),
        _event_table(task_lifecycle.TRANSITIONS, task_lifecycle.EVENT_MEANINGS),
    )
    agent = _section(
        "An agent",
        "This is observed health. What the operator wants (cordon, drain) is stored beside it and "
        "is shown as CORDONED or DRAINING.",
        _picture(agent_lifecycle.TRANSITIONS, agent_lifecycle.FIRST_STATE),
        _event_table(agent_lifecycle.TRANSITIONS, agent_lifecycle.EVENT_MEANINGS),
    )
    head = (
        f"<!-- Generated: {_COMMAND} -->\n\n# Lifecycles\n\n"
        "Each life is one table in the code: `src/muster/domain/task_lifecycle.py` and "
        "`agent_lifecycle.py`.\nAn event that the table does not allow in a state is refused with "
        "an error that names the task or\nagent, the state, the event and what happened before.\n"
    )
    return f"{head}\n{task}\n{agent}"


def _section(title: str, text: str, diagram: str, table: str) -> str:
    return f"## {title}\n\n{text}\n\n{diagram}\n{table}"


def _picture(transitions: Mapping[tuple[StateT, EventT], StateT], start: StateT) -> str:
    """The diagram as Markdown, and in words what it leaves out."""
    drawn = f"```mermaid\n{mermaid(transitions, start=start)}```\n"
    led = [
        f"{event.value} to {' or '.join(after.value for after in afters)}"
        for event, afters in from_most_states(transitions).items()
    ]
    return drawn + (
        f"\nNot drawn, because they lead on from most states: {', '.join(led)}.\n" if led else ""
    )


def _event_table(
    transitions: Mapping[tuple[StateT, EventT], StateT], meanings: Mapping[EventT, str]
) -> str:
    lines = ["| event | from | to | meaning |", "|---|---|---|---|"]
    for event, meaning in meanings.items():
        moves = [(before, after) for (before, e), after in transitions.items() if e is event]
        before_text = ", ".join(before.value for before, _ in moves)
        after_text = ", ".join(dict.fromkeys(after.value for _, after in moves))
        lines.append(f"| {event.value} | {before_text} | {after_text} | {meaning} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m muster.domain.lifecycle_diagram")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    parser.add_argument("path", type=Path)
    options = parser.parse_args(arguments)
    path: Path = options.path
    page = render_page()
    if not options.check:
        path.write_text(page, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == page:
        return 0
    sys.stderr.write(f"{path} is out of date; run: {_COMMAND}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
