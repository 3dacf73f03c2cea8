"""What the scheduler counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SUBMITTED = Counter("muster_tasks_admitted", "Tasks that the leader took in.")
PLACED = Counter("muster_tasks_placed", "Placements made.")
ENDED = Counter("muster_tasks_ended", "Tasks whose end was recorded, by final state.", ("state",))
STALE_OUTCOMES = Counter("muster_outcomes_fenced", "Outcomes refused because they were stale.")
QUEUED = Gauge("muster_tasks_queued", "Tasks that wait for a place.")
ASSIGNED = Gauge("muster_tasks_assigned", "Attempts sent to agents and not begun.")
RUNNING = Gauge("muster_tasks_running", "Attempts that run.")
AGENTS = Gauge("muster_agents", "Agents by state.", ("state",))
AGENT_HEALTH = Gauge(
    "muster_agent_health_score", "Health of agents that are not entirely well, 0 to 1.", ("agent",)
)
STUCK = Counter("muster_tasks_stuck", "Attempts ended because they showed no progress.")
IMPROVEMENTS = Counter(
    "muster_improvements", "Plans of improving strategies for what waits.", ("result",)
)
IMPROVED_TASKS = Counter(
    "muster_improved_tasks", "Tasks of such plans: placed, or stale when room came.", ("fate",)
)
OBJECTIVE_T = Gauge(
    "muster_objective_t_seconds", "T: what the placed tasks are expected to take yet, in sum."
)
OBJECTIVE_U = Gauge("muster_objective_u_ratio", "U: used / capacity, mean over resources.")
OBJECTIVE_B = Gauge("muster_objective_b_ratio", "B: standard deviation of the agents' loads.")
OBJECTIVE = (OBJECTIVE_T, OBJECTIVE_U, OBJECTIVE_B)
LEADER = Gauge("muster_scheduler_leader", "1 while this process leads.")
TERM = Gauge("muster_scheduler_term", "The term of this leader, 0 without the lead.")
ALARM = Gauge("muster_cluster_alarm", "1 while this leader's alarm stands, by name.", ("name",))
STORE_LOST_SECONDS = Counter(
    "muster_store_lost_seconds",
    "Cluster time by which a weak store was behind when it was started again.",
)
PLACE_SECONDS = Histogram(
    "muster_placement_duration_seconds",
    "Time of one round of placement.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5),
)
COMMIT_SECONDS = Histogram(
    "muster_commit_duration_seconds",
    "Time of one batch of writes to storage.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
COMMIT_ITEMS = Histogram(
    "muster_commit_items", "Writes in one batch.", buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500)
)
EVENTS_DROPPED = Counter("muster_events_dropped", "Progress events dropped for want of room.")
SESSION_MESSAGES = Counter(
    "muster_session_messages", "Messages on the sessions of agents and supervisors.", ("direction",)
)
HEARD = SESSION_MESSAGES.labels("in")
SAID = SESSION_MESSAGES.labels("out")

ATTEMPTS_NOTED = Counter("muster_attempts_noted", "Attempts noted to learn run times from.")
ATTEMPTS_FORGOTTEN = Counter(
    "muster_attempts_forgotten", "Noted attempts that there was no room for."
)
MODEL_VERSION = Gauge("muster_model_version", "The run-time model in use, 0 = none.")
STRAGGLERS = Counter("muster_stragglers", "Attempts that ran far longer than was expected.")
RECOVERIES = Counter(
    "muster_recoveries",
    "Outages of agents that are over, by what was done first and what became of the tasks.",
    ("action", "outcome"),
)


def forget_leadership() -> None:
    """A standby has no tasks and knows no agents."""
    for gauge in (*OBJECTIVE, LEADER, TERM, QUEUED, ASSIGNED, RUNNING, MODEL_VERSION):
        gauge.set(0)
    AGENTS.clear()
    AGENT_HEALTH.clear()
