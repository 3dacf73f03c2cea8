"""Alarms end with the term under which they were told, here and at the monitor."""

from __future__ import annotations

from muster.api.v1 import storage_pb2
from muster.domain.alarms import ALARMS, ETCD_REFUSES
from muster_monitor.alerting.tailing import happenings_of
from muster_scheduler import metrics
from muster_scheduler.alarms import Alarms


def _gauge() -> float:
    return float(metrics.ALARM.labels(ETCD_REFUSES)._value.get())


def test_an_alarm_is_told_once_and_ends_with_its_cause_or_its_term() -> None:
    told: list[storage_pb2.Event] = []
    alarms = Alarms()
    alarms.publish_by(told.append)
    alarms.start(ETCD_REFUSES, "full")
    alarms.start(ETCD_REFUSES, "full")
    alarms.end(ETCD_REFUSES)
    alarms.end(ETCD_REFUSES)
    assert [(event.note, event.why) for event in told] == [
        (ETCD_REFUSES, "full"),
        (ETCD_REFUSES, ""),
    ]
    alarms.start(ETCD_REFUSES, "full again")
    assert _gauge() == 1
    alarms.publish_by(None)
    assert not alarms.standing
    assert _gauge() == 0


def test_a_new_leader_ends_what_the_one_before_it_had_told() -> None:
    event = storage_pb2.Event(kind=storage_pb2.EVENT_KIND_LEADER_CHANGED, at_ms=5)
    ended = {h.finding.labels["alarm"]: h.finding.active for h in happenings_of(event)}
    assert ended == dict.fromkeys(ALARMS, False)
    raised = storage_pb2.Event(
        kind=storage_pb2.EVENT_KIND_CLUSTER_ALARM, note=ETCD_REFUSES, why="full", at_ms=6
    )
    (happening,) = happenings_of(raised)
    assert happening.finding.active
