"""The page docs/reliability.md: the failure model, the table of all faults, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.oracle.catalogue import FAULTS
from benchmarks.oracle.report import HEAD, noted, percentile, row
from benchmarks.oracle.scene import Run

# How each fault is made, and what is looked at.
ROWS: Mapping[str, str] = {
    "1": "The gateway is killed while a submission is under way. Clients send again with the same "
    "key: each key has one set of ids.",
    "2": "The leader is killed. A standby has the next term within 5 s at the 99th percentile, and "
    "submissions are accepted meanwhile (storage takes them).",
    "3": "The monitor is killed, and kept away for up to 12 s.",
    "4": "The registry is killed, and with most seeds kept away until every lease is gone.",
    "5": "The storage service is killed; Redis lives.",
    "6a": "An agent's runtime is killed, and its supervisor lives to tell.",
    "6b": "All processes of an agent are killed, and with most seeds it stays away.",
    "7": "Processes that run tasks are killed, as the kernel does when memory runs out.",
    "8": "All five services and the standby are killed at once.",
    "9": "All processes of an agent are stopped for 30 s; then it wakes up with outcomes of tasks "
    "that run elsewhere.",
    "10": "The leader is stopped for 9 s; then it wakes up while another leads.",
    "11": "etcd is stopped for 15 s: the lease of every agent is gone, and every agent lives.",
    "12": "Redis is stopped for 30 s while four more clients submit. Reads and submissions are "
    "answered 503 with Retry-After, and the services grow by less than 512 MiB.",
    "13": "The runtime of an agent is stopped for 5 s, with all of its threads, while its "
    "supervisor and its runners live.",
    "14": "etcd is killed and kept away for 5 min. Tasks that run longer than every lease are "
    "done, `stop` tasks too, for the leader goes on answering beats; submissions are "
    "accepted; nothing new is placed once the leader's lease cannot be valid. In recovery is the "
    "work of what was accepted in five minutes: the first task sent after them waits behind it.",
    "15": "While the registry is stopped an agent goes, etcd's history is compacted, and etcd "
    "is killed. The registry's view then equals a fresh list.",
    "16": "etcd's quota is used up. Who leads goes on and raises the alarm "
    "`etcd_refuses_writes`; the leader is killed meanwhile; after compaction, "
    "defragmentation and disarming the alarm ends and a leader is elected.",
    "17": "Power cut under etcd: its file system is shut down without its journal being "
    "written. Every registration is still there.",
    "18a": "Power cut under Redis, which syncs each write: nothing that was acknowledged is lost.",
    "18b": "The same with `appendfsync everysec`: what was acknowledged in the last two seconds "
    "may be lost, and the cluster says that something may be.",
    "19": "The disk under Redis is filled; Redis, told to sync always, ends itself.",
    "20": "Redis has used the memory that it may use: it refuses writes, and evicts no key.",
    "21": "A replica follows Redis, is cut off, and takes its place three seconds later. "
    "Scheduling halts: no task begins, submissions are answered 503. The right data is "
    "put back: it goes on.",
    "22": "An agent that runs long tasks of both kinds is a host of its own; all packets to and "
    "from it vanish for 60 s. Detection is until it is DOWN. Its `stop` tasks leave a mark every "
    "0.1 s: none may be later than the beginning of the next attempt.",
    "23": "The same with packets of one direction, which one the seed says. TCP stalls either way. "
    "Where the agent is not heard, its lease ends within 10 s; where it does not hear, its next "
    "beat to the registry arrives up to 3 s later and prolongs the lease from then, so that it is "
    "DOWN after up to 14.5 s.",
    "24": "The connections of both schedulers to etcd carry nothing for 12 s: what runs ends and "
    "is recorded, nothing is placed. Then the standby's carry again: it takes the term, and the "
    "old leader steps down though it is still cut off. Detection is until the standby has the "
    "term.",
    "25": "Each packet between agents and services is late by 200 ms, each way, and 10 % vanish, "
    "for 2 min. Half a task a second and agent is sent meanwhile; more than TCP carries over such "
    "a wire would be another fault.",
    "26": "Connections to storage, then to both schedulers, stay open and carry nothing, new ones "
    "too. Detection is the longest time that a REST request waited for its answer. (A test reads "
    "the code besides: every RPC has a deadline, or is an endless stream of a probed connection.)",
    "27": "Requests arrive and their replies are lost, on each kind of link.",
    "28": "Three of five agents are killed at once, supervisors too, and stay away for 30 s: none "
    "of them is given up meanwhile. Detection is until the alarm, recovery until all are back.",
    "29": "The wall clock of all of Muster's processes, of its services or of its agents is set "
    "one hour ahead and one hour behind while tasks with deadlines run. Only Muster is told the "
    "wrong time: gRPC, Redis and etcd keep theirs.",
    "30": "Each task is cancelled at about the time when it ends.",
    "31": "A task kills the runtime of whoever runs it.",
    "32": "Peak: what clients that wait for their answers get done, with requests of 20 tasks "
    "each. Then ten times as many such requests arrive in two other processes, whether those "
    "before are answered or not, over up to 8,000 connections; what finds none free is counted as "
    "arrived. Refused requests are repeated when they were told to, unanswered ones after 10 s. "
    "Clients and cluster have half of the cores each. Redis writes its log anew before either "
    "measurement, so that this falls into neither. With requests of one task each nobody here "
    "could offer ten times the peak: one core sends no more than a gateway on the other takes.",
    "33": "An agent is told to end while its tasks run.",
    "34": "The runtime of an agent is killed each time that it is there again, until it is "
    "quarantined. Detection is until then; recovery until a probe has absolved it.",
    "35": "Calls to Redis (by script or command and key) and to etcd (by method and key) go "
    "through proxies that know them; each kind in turn is refused for now, refused for "
    "good, and carried out with its answer lost. Each error leads to another try, an "
    "error for who asked, or a line in a log.",
}

_MODEL = """\
## The failure model

Processes die, stop and wake up again; machines lose power; disks fill; networks lose, delay and
repeat packets, in one direction or both; wall clocks jump. Processes do not lie: a bug or an
attacker inside the cluster is not among these. CLOCK_BOOTTIME of a machine moves on at about the
right speed. One Redis with `appendfsync always` keeps what it has answered for; what is promised
with less is in [guarantees](guarantees.md#stores).

What follows from it: silence alone does not tell a dead agent from one that is cut off, so an
agent's silence and its lost lease are weighed together, `stop` tasks wait until no execution can be
left, and outcomes carry attempt and incarnation so that late ones are refused. A leader that was
cut off is refused by its term. What each state of an agent means is in
[concepts](concepts.md) and [guarantees](guarantees.md#an-agent-dies).
"""

_COLUMNS = """\
Of each run, unless its row says otherwise: a burst of tasks of 20 to 200 ms (a fifth of the
submissions with `on_disconnect: stop`) and two tasks every 100 ms until all is over, on a fresh
cluster of {agents} agents and two schedulers; the fault strikes at a seeded moment while the burst
is in flight.

* **lost**: acknowledged tasks that did not end as they must. **doubled**: a submission with two
  sets of ids, a task with two ends, two executions of a `stop` task at a time. **stale
  accepted**: a recorded result that is not the recorded attempt's own, an attempt or a term that
  goes back. **charged wrongly**: a failure or an agent's death counted without one. **moved
  without reason**: an attempt taken from an agent that nothing had happened to, or such an agent
  given up. All of these must be 0.
* **false positives**: agents that the fault had not killed or cut off and that were given up
  (must be 0) / that were suspected, which stops new work for them and takes nothing away.
* **fenced**: outcomes that leaders refused as stale, repeats of recorded ones included, counted
  by leaders that lived to be asked. **duplicate executions**: executions beyond the first of a
  task; they are what at-least-once allows.
* **detection**: of a dead agent until the leader gave it up, of a leader until the next one had
  its term, of other services until they were started again; where the row says so, something else.
  **recovery**: for each task that ran on the lost agent until it ran again; of services until all
  are ready and a task sent after the fault has ended, from the end of the fault where it lasts.
* **submissions refused**: answers other than 202, and broken connections; the client repeats
  them with the same key. **longest gap**: without an accepted submission.
* **held**: nothing was violated with any seed, and the limits hold for the 99th percentile where
  they name no other. A fault that this machine cannot make is skipped, and says why.
"""


def page(runs: Mapping[str, Sequence[Run]], facts: Mapping[str, Any]) -> str:
    """`runs` by fault; `facts`: machine, versions, command, agents, parts,
    order, schedules."""
    found = {number: runs[number] for number in FAULTS if number in runs}
    lines = [
        "<!-- Printed by benchmarks/chaos.py; `make chaos` writes it anew. -->",
        "",
        "# Reliability",
        "",
        "What happens when parts of a cluster are killed, frozen, cut off or told the wrong time",
        "under load, and whether the books balance afterwards. Real processes, real etcd, real",
        "Redis with `appendfsync always`.",
        "",
        _MODEL,
        "## The faults",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
        *("| " + " | ".join(row(number, some)) + " |" for number, some in found.items()),
        "",
        *_failures(found),
        *_repairs(found),
        *_overload(found.get("32", [])),
        "## What the columns say",
        "",
        _COLUMNS.format(**facts),
        "## What each row is",
        "",
        *(f"* **{number}**, {FAULTS[number]().name}: {ROWS[number]}" for number in found),
        "",
        *_schedules(facts["schedules"]),
        _setting(found, facts),
        "",
    ]
    return "\n".join(lines)


def _failures(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    said = [
        f"* fault {run.fault}, seed {run.seed}: {'; '.join([*run.violations, *run.problems][:3])}"
        for some in runs.values()
        for run in some
        if not run.clean
    ]
    return ["What did not hold:", "", *said, ""] if said else []


def _repairs(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """How long tasks of a lost agent waited once it was decided what becomes of it."""
    rows = []
    for number, some in runs.items():
        cells = []
        for kind in ("", "stop_"):
            count = sum(noted(some, f"{kind}begun_after_decision"))
            longest = noted(some, f"{kind}begun_after_decision_max_s")
            middle = noted(some, f"{kind}begun_after_decision_median_s")
            times = f"{percentile(middle, 0.5):.2f} / {max(longest):.2f}" if longest else "–"
            cells += [f"{count:.0f}" if longest else "–", times]
        suspected = noted(some, "suspected_s")
        if suspected:
            cells.append(f"{percentile(suspected, 0.5):.2f} / {max(suspected):.2f}")
        else:
            cells.append("–")
        if set(cells) != {"–"}:
            rows.append(f"| {number} | " + " | ".join(cells) + " |")
    if not rows:
        return []
    return [
        "## From the decision until tasks run again",
        "",
        "Seconds from the last decision about a lost agent until its tasks had begun elsewhere:",
        "the median of the runs' medians, and the longest of all. Tasks with `on_disconnect: stop`",
        "wait besides until the agent has surely ended them, whatever is decided. Suspected: from",
        "the fault until the monitor's doubt about the agent was an event, median and longest,",
        "where that came first.",
        "",
        "| fault | tasks | median / longest, s | `stop` tasks | median / longest, s "
        "| suspected, s |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _overload(runs: Sequence[Run]) -> list[str]:
    """What the runs of fault 32 measured."""
    figures = (
        ("peak, tasks/s", "peak_tasks_per_s", ".0f"),
        ("offered, times the peak", "offered_times", ".1f"),
        ("goodput, tasks/s", "goodput_tasks_per_s", ".0f"),
        ("goodput, share of the peak", "goodput_share", ".0%"),
        ("repeats, share of requests", "repeat_share", ".0%"),
        ("requests taken (202)", "answers_202", ".0f"),
        ("requests refused (429)", "answers_429", ".0f"),
        ("requests not answered in 10 s", "unknown", ".0f"),
    )
    rows = []
    for what, name, shape in figures:
        if values := noted(runs, name):
            cells = (percentile(values, 0.5), min(values), max(values))
            rows.append(f"| {what} | " + " | ".join(format(cell, shape) for cell in cells) + " |")
    if not rows:
        return []
    head = ["## Ten times the load", "", f"Of {len(runs)} runs:", ""]
    return [*head, "| figure | median | least | most |", "|---|---|---|---|", *rows, ""]


def _schedules(told: Mapping[str, Any]) -> list[str]:
    lines = ["## Simulated schedules", ""]
    if not told:
        return [*lines, "None were run for this page.", ""]
    how = "All invariants held in all of them." if told["held"] else "**Not all held**, see below."
    return [
        *lines,
        f"{told['count']:,} seeded schedules in virtual time, {told['took_s'] / 60:.1f} min: the",
        "same cores with servers, stores and networks that fail, see",
        f"[tests/scenarios](../tests/scenarios). {how}",
        "",
        "```text",
        *told["said"],
        "```",
        "",
    ]


def _setting(runs: Mapping[str, Sequence[Run]], facts: Mapping[str, Any]) -> str:
    machine, versions = facts["machine"], facts["versions"]
    took_s = sum(run.took_s for some in runs.values() for run in some)
    return (
        f"Printed by `{facts['command']}`{facts['parts']} on "
        f"{machine['cores']} × {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, {machine['file_system']} "
        f"(fdatasync {machine['fsync_ms']} ms); "
        + ", ".join(f"{name} {value}" for name, value in versions.items())
        + f". The runs of the table took {took_s / 3600:.1f} h in sum, {facts['order']}. Times "
        "depend on what else the machine does."
    )
