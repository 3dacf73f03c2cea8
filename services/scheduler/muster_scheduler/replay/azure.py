"""Traces of LLM requests with columns TIMESTAMP, ContextTokens and GeneratedTokens.

As in Azure's public traces (Patel et al., Splitwise, ISCA 2024). They have no run times: a request
takes what its tokens take at the speeds named here, on an agent of speed 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster_scheduler.learning.attempts import TaskFeatures
from muster_scheduler.replay.rows import Row, read_rows
from muster_scheduler.replay.trace import Trace, TraceAgent, TraceTask, checked

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# Tokens per second of a slow agent: reading a prompt and writing an answer.
PROMPT_PER_S = 1000.0
ANSWER_PER_S = 10.0
SLOTS = 4
SKILL = "chat"
_MAX_TOKENS = 10_000_000
# A request of no tokens takes this long all the same.
_LEAST_S = 0.01


def read_azure(path: Path, agents: Sequence[TraceAgent], *, hide_answer: bool = False) -> Trace:
    """`hide_answer`: neither the estimate nor the features tell how long the answer will be.

    Raises InvalidInput naming row and column.
    """
    rows = [
        (_seconds(row), row.integer("ContextTokens", 0, _MAX_TOKENS),
         row.integer("GeneratedTokens", 0, _MAX_TOKENS))
        for row in read_rows(path, COLUMNS)
    ]  # fmt: skip
    rows.sort(key=lambda row: row[0])
    first_s = rows[0][0] if rows else 0.0
    usual = sum(answer for _, _, answer in rows) / max(1, len(rows))
    tasks = []
    for at_s, prompt, answer in rows:
        work_s = max(_LEAST_S, prompt / PROMPT_PER_S + answer / ANSWER_PER_S)
        fields: tuple[tuple[str, float], ...] = (("context_tokens", float(prompt)),)
        declared_s = work_s
        if hide_answer:
            declared_s = prompt / PROMPT_PER_S + usual / ANSWER_PER_S
        else:
            fields += (("generated_tokens", float(answer)),)
        # What a prompt weighs on the wire: about four bytes a token.
        features = TaskFeatures(SKILL, declared_s, 4 * prompt, fields)
        tasks.append(TraceTask(at_s - first_s, work_s, features, ResourceVector()))
    note = (
        f"run times are tokens at {PROMPT_PER_S:g}/s of prompt and {ANSWER_PER_S:g}/s of answer, "
        "over the agent's speed"
    )
    return checked(Trace(tuple(tasks), tuple(agents), (note,)))


def equal_agents(
    count: int,
    capacity: ResourceVector,
    speeds: tuple[float, float],
    seed: int,
    *,
    even: bool = False,
) -> tuple[TraceAgent, ...]:
    """Agents that look alike; their speeds between the two given are not to be seen.

    Drawn so that each ratio is as likely as another, or with `even` each number.
    """
    low, high = speeds
    if not 0 < low <= high <= 1000:
        raise InvalidInput("speeds", f"{low:g}-{high:g}", "must be LOW-HIGH, above 0, at most 1000")
    drawn = np.random.default_rng(seed).random(max(0, count))
    found = low + (high - low) * drawn if even else low * (high / low) ** drawn
    return tuple(
        TraceAgent(f"agent-{index:04}", capacity, speed=speed)
        for index, speed in enumerate(found.tolist())
    )


def _seconds(row: Row) -> float:
    text = row.text("TIMESTAMP")
    # Seven digits of a second's fraction; Python reads six.
    head, _, fraction = text.partition(".")
    try:
        at = datetime.fromisoformat(f"{head}+00:00")
        part = float(f"0.{fraction or '0'}")
    except ValueError:
        limit = "must be a time such as 2023-11-16 18:15:46.6805900"
        raise InvalidInput(row.place("TIMESTAMP"), text, limit) from None
    return at.timestamp() + part
