"""The operator's page names every state of an agent and every alert."""

from __future__ import annotations

import re
from pathlib import Path

from muster.domain.agent_lifecycle import AgentState, AgentWish, shown_state
from muster.domain.alarms import ALARMS
from muster_monitor.log_analysis import analysis
from muster_monitor.mass_failure import AGENT_SUSPECTED, MASS_FAILURE
from muster_monitor.rules.builtin import BUILTIN_RULES
from muster_monitor.self_trust import MONITOR_LAGGING
from muster_monitor.senses import RULES_INVALID

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "operating.md").read_text()
FIRST_CELLS = " ".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("|"))
NAMED = set(re.findall(r"`(\w+)`", FIRST_CELLS))


def test_every_state_has_its_row() -> None:
    # Also what is shown in place of a state because an operator wants it so.
    shown = {shown_state(state, wish) for state in AgentState for wish in AgentWish}
    assert "CORDONED" in shown
    assert {str(state) for state in AgentState} | shown <= NAMED


def test_every_alert_has_its_row() -> None:
    alerting = REPOSITORY / "services/monitor/muster_monitor/alerting"
    own = {
        name
        for path in alerting.glob("*.py")
        for name in re.findall(r'(?:Finding\(|(?<!_)say\()\s*"(\w+)"', path.read_text())
    }
    assert {"agent_down", "receiver_failing"} <= own
    builtin = set(re.findall(r"- name: (\w+)", BUILTIN_RULES))
    assert "service_down" in builtin
    found = {AGENT_SUSPECTED, MASS_FAILURE, MONITOR_LAGGING, RULES_INVALID}
    found |= {analysis.LOG_BURST, analysis.LOG_NEW_ERROR}
    assert own | builtin | found | set(ALARMS) <= NAMED
