"""The page of lifecycles is complete and is the one that is committed."""

import re
from enum import StrEnum
from pathlib import Path

import pytest

from muster.domain import agent_lifecycle, task_lifecycle
from muster.domain.lifecycle_diagram import from_most_states, main, mermaid, render_page

PAGE = Path(__file__).parents[3] / "docs" / "lifecycles.md"


class Light(StrEnum):
    RED = "RED"
    GREEN = "GREEN"
    BROKEN = "BROKEN"


class Push(StrEnum):
    GO = "GO"
    HURRY = "HURRY"
    HIT = "HIT"


SMALL_TABLE = {
    (Light.RED, Push.GO): Light.GREEN,
    (Light.GREEN, Push.HIT): Light.BROKEN,
    (Light.RED, Push.HURRY): Light.GREEN,
}


def test_a_small_table_is_drawn() -> None:
    assert mermaid(SMALL_TABLE, start=Light.RED) == (
        "stateDiagram-v2\n"
        "    [*] --> RED\n"
        "    RED --> GREEN: GO, HURRY\n"
        "    GREEN --> BROKEN: HIT\n"
        "    BROKEN --> [*]\n"
    )
    assert "[*] --> RED" not in mermaid(SMALL_TABLE)


def moves_drawn(diagram: str) -> set[tuple[str, str, str]]:
    arrows = re.findall(r"^    (\w+) --> (\w+): (.+)$", diagram, re.MULTILINE)
    return {(before, e, after) for before, after, events in arrows for e in events.split(", ")}


def test_both_tables_are_drawn_whole_but_for_what_leads_on_from_most_states() -> None:
    tasks = {(b.value, e.value, a.value) for (b, e), a in task_lifecycle.TRANSITIONS.items()}
    agents = {(b.value, e.value, a.value) for (b, e), a in agent_lifecycle.TRANSITIONS.items()}
    assert moves_drawn(mermaid(task_lifecycle.TRANSITIONS)) == tasks
    left_out = {e.value for e in from_most_states(agent_lifecycle.TRANSITIONS)}
    assert left_out == {"REJOINED", "DIED", "LEAVE", "DRAIN", "RESTART"}
    drawn = {move for move in agents if move[1] not in left_out}
    assert moves_drawn(mermaid(agent_lifecycle.TRANSITIONS)) == drawn
    assert moves_drawn(render_page()) == tasks | drawn
    assert "DIED to DOWN" in render_page()


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page()


def test_check_tells_a_current_page_from_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "lifecycles.md"
    assert main(["--check", str(page)]) == 1
    assert not page.exists()
    assert main([str(page)]) == 0
    assert main(["--check", str(page)]) == 0
    page.write_text(page.read_text(encoding="utf-8") + "edited", encoding="utf-8")
    capsys.readouterr()
    assert main(["--check", str(page)]) == 1
    assert f"{page} is out of date" in capsys.readouterr().err
