"""What is done about agents that are down, by expected cost: docs/recovery.md. Pure."""

from muster_scheduler.recovery.backoff import RestartBudget, longest_pause_s, pause_s
from muster_scheduler.recovery.decision import Decision
from muster_scheduler.recovery.ledger import SpareLedger
from muster_scheduler.recovery.planner import decide, decide_all, restart_emptied
from muster_scheduler.recovery.policies import POLICIES
from muster_scheduler.recovery.posterior import Beliefs, Beta, Prior
from muster_scheduler.recovery.settings import Bounds, RecoverySettings
from muster_scheduler.recovery.situation import Action, Cluster, Failure, FailureKind, HeldTask

__all__ = [
    "POLICIES",
    "Action",
    "Beliefs",
    "Beta",
    "Bounds",
    "Cluster",
    "Decision",
    "Failure",
    "FailureKind",
    "HeldTask",
    "Prior",
    "RecoverySettings",
    "RestartBudget",
    "SpareLedger",
    "decide",
    "decide_all",
    "longest_pause_s",
    "pause_s",
    "restart_emptied",
]
