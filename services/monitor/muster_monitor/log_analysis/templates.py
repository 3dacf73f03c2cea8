"""The kinds of error lines that were seen: drain3's miner within bounds. Pure.

Drain (He, Zhu, Zheng, Lyu, 2017) groups lines by their number of words and their first words and
replaces what differs by a parameter. Of the package only the miner is used: its persistence decodes
jsonpickle, which can run code. Templates are kept as plain texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from drain3.drain import Drain, LogCluster

from muster_monitor.log_analysis.plain_text import masked

# The least recently used template is forgotten.
MAX_TEMPLATES = 500
# Words of a line that are looked at: a comparison costs as much as there are words.
MAX_TEMPLATE_WORDS = 24
MAX_TEMPLATE_CHARS = 400
_DEPTH = 4
_SIMILAR = 0.5
_MAX_CHILDREN = 50
# The miner's tree keeps empty branches of what it forgot; it is built anew after so many.
_REBUILD_AFTER = 4 * MAX_TEMPLATES


class Templates:
    """`known` are templates of an earlier time, oldest first."""

    def __init__(self, known: Iterable[str] = (), max_templates: int = MAX_TEMPLATES) -> None:
        self._max = max_templates
        self._drain = self._empty()
        self._made = 0
        self.changed = False
        for template in known:
            self.remember(template)
        self.changed = False

    def __len__(self) -> int:
        return len(self._drain.id_to_cluster)

    def texts(self) -> list[str]:
        """All templates, in the order in which they were learnt."""
        return [cluster.get_template() for cluster in self._ordered()]

    def remember(self, template: str) -> None:
        """Adds a template that another monitor or an earlier run has learnt."""
        words = template[:MAX_TEMPLATE_CHARS].split()[:MAX_TEMPLATE_WORDS]
        if words and template.isprintable() and self._drain.match(" ".join(words)) is None:
            self._add(words)
            self.changed = True

    def learn(self, line: str) -> str | None:
        """The line's template when the line is of a new kind, else None."""
        words = masked(line)[:MAX_TEMPLATE_CHARS].split()[:MAX_TEMPLATE_WORDS]
        if not words:
            return None
        cluster, change = self._drain.add_log_message(" ".join(words))
        if change != "none":
            self.changed = True
        if change != "cluster_created":
            return None
        self._made += 1
        if self._made >= _REBUILD_AFTER:
            self._rebuild()
        return str(cluster.get_template())

    def _empty(self) -> Any:
        return Drain(
            depth=_DEPTH,
            sim_th=_SIMILAR,
            max_children=_MAX_CHILDREN,
            max_clusters=self._max,
            profiler=None,
            # Words with digits are masked before, so a digit says nothing more.
            parametrize_numeric_tokens=False,
        )

    def _ordered(self) -> list[Any]:
        return [self._drain.id_to_cluster.get(i) for i in list(self._drain.id_to_cluster)]

    def _add(self, words: list[str]) -> None:
        drain = self._drain
        drain.clusters_counter += 1
        cluster = LogCluster(words, drain.clusters_counter)
        drain.id_to_cluster[cluster.cluster_id] = cluster
        drain.add_seq_to_prefix_tree(drain.root_node, cluster)

    def _rebuild(self) -> None:
        kept = [list(cluster.log_template_tokens) for cluster in self._ordered()]
        self._drain, self._made = self._empty(), 0
        for words in kept:
            self._add(words)
