"""The tables of a document in Markdown. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.peers.catalog import KEPT, PEERS
from benchmarks.peers.figures import Row, Spread, speed_of, spread

BEGIN = "<!-- printed by benchmarks/peers/run.py: begin -->"
END = "<!-- printed by benchmarks/peers/run.py: end -->"
_BY_NAME = {peer.name: peer for peer in PEERS}
_ORDER = {peer.name: place for place, peer in enumerate(PEERS)}


def render(document: Mapping[str, Any]) -> str:
    """Machine, versions and all tables."""
    rows = sorted(document["rows"], key=lambda row: _ORDER[row["peer"]])
    parts = [
        _machine(document, rows),
        *_speed_table(document, rows),
        *_kill_table(document, rows),
        "### Settings",
        _table(("system", "settings"), _settings(rows)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def into_page(page: str, printed: str) -> str:
    """The page with what stands between its marks replaced; without marks, a page of its own."""
    block = f"{BEGIN}\n\n{printed}\n{END}"
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    return f"{head}{block}{tail}" if begin and end else f"{block}\n"


def title(row: Row) -> str:
    """A row's name in the tables."""
    name = _BY_NAME[row["peer"]].title
    return f"{name} ({row['variant']})" if row["variant"] else name


def _machine(document: Mapping[str, Any], rows: Sequence[Row]) -> str:
    machine = document["machine"]
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row.get("versions", {})
    # Client libraries are told from the server of the same name.
    shown = [
        f"{'redis-py' if name == 'redis' else name} {version}"
        for name, version in sorted(versions.items())
    ]
    lines = [
        f"Machine: {machine['cores']} × {machine['cpu']}, {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, {machine['file_system']} (fdatasync {machine['fsync_ms']} ms).",
        f"Versions: Python {document['python']}, Redis {document['redis']}, {', '.join(shown)}.",
    ]
    if document.get("differs"):
        lines.append(f"Not measured alike: {'; '.join(document['differs'])}.")
    return "\n".join(lines)


def _speed_table(document: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    body: list[tuple[str, ...]] = []
    runs = 0
    for row in rows:
        kept, speed = KEPT[row["variant"]], speed_of(row)
        runs = max(runs, len(row["speed"]))
        if speed:
            rate, median, p99 = speed.values()
            others = _others([run["others_cpu"] for run in row["speed"] if "others_cpu" in run])
            body.append((title(row), kept, _rate(rate), _ms(median), _ms(p99), others))
        # Also when other runs of it came off.
        if why := row["failures"].get("speed"):
            body.append((title(row), kept, f"failed: {_cell(why)}", "", "", ""))
    if not body:
        return []
    head = ("system", "a submitted task is", "tasks/s", "median ms", "p99 ms", "others")
    return [
        "### Speed",
        f"{document['tasks']:,} no-op tasks of one client, from the first submission until every "
        f"result was gathered and checked; then {document['latency_tasks']} tasks one after "
        f"another, from submission to result. {document['workers']} workers. Medians of "
        f"{runs} runs (least … greatest). `others` is the share of the machine's CPU time that "
        "processes of no part in the measurement had meanwhile: rows compare only as far as it is "
        "small.",
        _table(head, body, right=4),
    ]


def _kill_table(document: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    body: list[tuple[str, ...]] = []
    for row in rows:
        peer = _BY_NAME[row["peer"]]
        for case in peer.cases:
            deaths = [death for death in row["kill"] if death["case"] == case.name]
            if deaths:
                body.append((title(row), _cell(case.settings), *_deaths(deaths)))
            # Also when other runs of it came off.
            if why := row["failures"].get(case.name):
                body.append(
                    (title(row), _cell(case.settings), "", "", f"failed: {_cell(why)}", "", "")
                )
    if not body:
        return []
    naps, nap_s, kill_s, give_up_s = (
        document["kill"][name] for name in ("naps", "nap_s", "kill_after_s", "give_up_s")
    )
    head = ("system", "case", "killed", "runs", "results", "last after s", "begun")
    return [
        f"### `kill -9` of the workers in the middle of {naps} tasks of {nap_s:g} s",
        f"{document['workers']} workers of one task at a time; undisturbed this "
        f"takes {naps * nap_s / document['workers']:g} s. Killed {kill_s:g} s after the "
        "submission; where nothing else starts workers again, the driver does at once. Results "
        f"that came within {give_up_s:g} s of the submission, when the last of them came, and "
        "how often a task was begun in all; of several runs the least … greatest, and the median "
        "of the time.",
        _table(head, body, right=4),
    ]


def _deaths(deaths: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The cells of one case's runs."""
    last = spread([death["last_s"] for death in deaths if death["results"]] or [0.0])
    return (
        _cell(str(deaths[-1]["killed"])),
        str(len(deaths)),
        f"{_range([death['results'] for death in deaths])} of {deaths[-1]['naps']}",
        (f"{last.median:.1f}" + (f" ({last.low:.1f} … {last.high:.1f})" if len(deaths) > 1 else ""))
        if last.high
        else "",
        _range([death["executions"] for death in deaths]),
    )


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} … {high}"


def _settings(rows: Sequence[Row]) -> Iterable[tuple[str, ...]]:
    measured = {row["peer"] for row in rows}
    for peer in PEERS:
        if peer.name in measured:
            yield (peer.title, _cell(peer.settings))


def _table(head: Sequence[str], body: Iterable[Sequence[str]], *, right: int | None = None) -> str:
    """`right`: how many of the last columns hold figures."""
    first_right = len(head) if right is None else len(head) - right
    rule = ["---" if place < first_right else "---:" for place in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _rate(figure: Spread) -> str:
    return f"{figure.median:,.0f} ({figure.low:,.0f} … {figure.high:,.0f})"


def _others(shares: Sequence[float]) -> str:
    if not shares:
        return "not known"
    return f"{statistics.median(shares):.0%} ({min(shares):.0%} … {max(shares):.0%})"


def _ms(figure: Spread) -> str:
    return f"{figure.median:.2f} ({figure.low:.2f} … {figure.high:.2f})"
