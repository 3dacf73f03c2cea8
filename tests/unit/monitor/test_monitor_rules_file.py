"""The rules file while the monitor runs: changed, broken, replaced, gone."""

from __future__ import annotations

import os
from pathlib import Path

from tests.unit.monitor.finding_list import FindingList

from muster.domain.ids import AgentId
from muster_monitor.rules.file import RulesFile
from muster_monitor.rules.located import MAX_RULES_BYTES
from muster_monitor.senses import RULES_INVALID, Senses

SOUND = "builtin: false\nrules: [{name: %s, metric: m, above: 1}]\n"


class Desk:
    """A senses with a rules file, looked at by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sink = FindingList()
        self.senses = Senses(self.sink, instance="m:1")
        take, refuse = self.senses.new_rules(lambda: 7), self.senses.broken_rules(lambda: 7)
        self.file = RulesFile(path, take, refuse)

    @property
    def rules(self) -> list[str]:
        return [rule.name for rule in self.senses.rules.figures]

    def told(self) -> list[tuple[str, bool]]:
        found = [(f.rule, f.active) for f in self.sink.newest]
        self.sink.newest.clear()
        return found


async def test_a_file_that_changes_is_read_again_and_else_is_not(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "rules.yaml")
    desk.path.write_text(SOUND % "one")
    assert await desk.file.look()
    assert desk.rules == ["one"]
    assert not await desk.file.look()
    desk.path.write_text(SOUND % "other")
    assert await desk.file.look()
    assert desk.rules == ["other"]
    # As editors and config maps do: another file of the same size in its place.
    (tmp_path / "new").write_text(SOUND % "third")
    os.utime(tmp_path / "new", ns=(1, desk.path.stat().st_mtime_ns))
    (tmp_path / "new").replace(desk.path)
    assert await desk.file.look()
    assert desk.rules == ["third"]
    assert desk.told() == []


async def test_a_broken_file_keeps_the_old_rules_and_is_told_until_it_is_mended(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path / "rules.yaml")
    desk.path.write_text(SOUND % "one")
    await desk.file.look()
    desk.path.write_text("rules: [{name: x, metric: m, above: .nan}]")
    await desk.file.look()
    assert desk.rules == ["one"]
    summary = desk.sink.newest[0].summary
    assert "line 1: rules[0].above: nan is not accepted" in summary
    assert desk.told() == [(RULES_INVALID, True)]
    desk.path.unlink()
    await desk.file.look()
    assert desk.rules == ["one"]
    assert desk.told() == [(RULES_INVALID, True)]
    desk.path.write_text(SOUND % "two")
    await desk.file.look()
    assert desk.rules == ["two"]
    assert desk.told() == [(RULES_INVALID, False)]


async def test_a_file_that_is_not_there_at_the_start_leaves_the_built_in_rules(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path / "rules.yaml")
    await desk.file.look()
    assert "agent_disk_full" in desk.rules
    assert desk.told() == [(RULES_INVALID, True)]
    # Once, not at each look.
    assert not await desk.file.look()
    assert desk.told() == []


async def test_what_is_no_file_holds_nobody_up(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        desk = Desk(path)
        await desk.file.look()
        assert desk.told() == [(RULES_INVALID, True)]
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_RULES_BYTES * 1000)
    desk = Desk(large)
    await desk.file.look()
    assert f"at most {MAX_RULES_BYTES} bytes" in desk.sink.newest[0].summary


async def test_rules_that_go_take_their_findings_along(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "rules.yaml")
    desk.path.write_text(SOUND % "one")
    await desk.file.look()
    desk.senses.figures_came(AgentId("a"), {"m": 5.0}, 1, 1)
    assert desk.told() == [("one", True)]
    desk.path.write_text(SOUND % "another")
    await desk.file.look()
    assert desk.told() == [("one", False)]
