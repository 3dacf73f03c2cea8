"""How much slower or faster an agent is than others, from what its attempts left unexplained.

A hierarchy of shrunken means of residuals in log seconds (a random-effects model fitted by
backfitting; Gelman and Hill 2007, ch. 12): the label's effect, then the agent's around its labels',
then the skill's on that agent around the agent's. Each mean is pulled towards what is above it by a
number of imagined attempts, so an agent never met has its labels' effect and one met once is
believed a little. Any number of agents costs one number each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from muster_scheduler.learning.attempts import AgentFeatures
from muster_scheduler.placement.snapshot import FloatArray

# Attempts' worth of doubt at each level.
_LABEL_DOUBT = 20.0
_AGENT_DOUBT = 1.0
_PAIR_DOUBT = 5.0
_ROUNDS = 3
# A label of one agent says no more than the agent's name.
_MAX_LABELS = 64
# Agents of which a model remembers something, and labels: bounds a model's size.
MAX_REMEMBERED = 20_000


class Effects(msgspec.Struct, frozen=True):
    """Log seconds more (or less) than the average, by what they are of."""

    labels: dict[str, float] = {}
    agents: dict[str, float] = {}
    # By "skill\nagent".
    pairs: dict[str, float] = {}
    # Attempts seen, by "skill\nagent".
    counts: dict[str, int] = {}

    def of(self, skill: str, agent: AgentFeatures) -> float:
        key = pair_key(skill, agent.agent_id)
        effect = self.agents.get(agent.agent_id, 0.0) + self.pairs.get(key, 0.0)
        for label in agent.labels:
            effect += self.labels.get(label_key(label), 0.0)
        return effect

    def row(self, skill: str, agents: Sequence[AgentFeatures]) -> FloatArray:
        """float64 [M]"""
        return np.fromiter((self.of(skill, agent) for agent in agents), np.float64, len(agents))


def pair_key(skill: str, agent_id: str) -> str:
    return f"{skill}\n{agent_id}"


def label_key(label: tuple[str, str]) -> str:
    return f"{label[0]}={label[1]}"


def fit_effects(
    skills: Sequence[str], agents: Sequence[AgentFeatures], residuals: FloatArray
) -> Effects:
    """`residuals` float64 [N] in log seconds, of attempts of `skills` on `agents`."""
    label_keys = _shared_labels(agents)
    of_label = [
        [label_keys[key] for key in map(label_key, agent.labels) if key in label_keys]
        for agent in agents
    ]
    rows = np.repeat(np.arange(len(agents)), [len(codes) for codes in of_label])
    codes = np.array([code for codes in of_label for code in codes], np.int64)
    label_means = np.zeros(len(label_keys))
    # A label's effect is what its agents share, so labels are fitted together.
    for _ in range(_ROUNDS if len(label_keys) else 0):
        for label in range(len(label_keys)):
            mine = rows[codes == label]
            explained = np.bincount(rows, label_means[codes], len(agents))
            left = residuals[mine] - explained[mine] + label_means[label]
            label_means[label] = left.sum() / (left.shape[0] + _LABEL_DOUBT)
    left = residuals - np.bincount(rows, label_means[codes], len(agents))
    agent_keys, agent_means, left = _shrunken(
        [agent.agent_id for agent in agents], left, _AGENT_DOUBT
    )
    pairs = [pair_key(skill, agent.agent_id) for skill, agent in zip(skills, agents, strict=True)]
    pair_keys, pair_means, _ = _shrunken(pairs, left, _PAIR_DOUBT)
    counts = np.bincount([pair_keys[pair] for pair in pairs], minlength=len(pair_keys))
    return Effects(
        dict(zip(label_keys, label_means.tolist(), strict=True)),
        dict(zip(agent_keys, agent_means.tolist(), strict=True)),
        dict(zip(pair_keys, pair_means.tolist(), strict=True)),
        dict(zip(pair_keys, counts.tolist(), strict=True)),
    )


def _shared_labels(agents: Sequence[AgentFeatures]) -> dict[str, int]:
    """Codes of the labels that tell groups of agents apart, those of most attempts first."""
    known = {agent.agent_id: agent.labels for agent in agents}
    wearers = Counter(label_key(label) for labels in known.values() for label in labels)
    attempts = Counter(label_key(label) for agent in agents for label in agent.labels)
    telling = [key for key, count in wearers.items() if 1 < count < len(known)]
    telling.sort(key=lambda key: (-attempts[key], key))
    return {key: code for code, key in enumerate(telling[:_MAX_LABELS])}


def _codes(keys: Iterable[str]) -> dict[str, int]:
    """In order of first appearance, at most MAX_REMEMBERED."""
    codes: dict[str, int] = {}
    for key in keys:
        codes.setdefault(key, len(codes))
    assert len(codes) <= MAX_REMEMBERED, "a window names more than a model remembers"
    return codes


def _shrunken(
    keys: Sequence[str], residuals: FloatArray, doubt: float
) -> tuple[dict[str, int], FloatArray, FloatArray]:
    """Codes of the keys, their shrunken means, and the residuals that these leave."""
    codes = _codes(keys)
    code_of = np.array([codes[key] for key in keys], np.int64)
    count = np.bincount(code_of, minlength=len(codes))
    means: FloatArray = np.bincount(code_of, residuals, len(codes)) / (count + doubt)
    return codes, means, residuals - means[code_of]
