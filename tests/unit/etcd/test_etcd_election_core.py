"""When a candidate tries and when a leader steps down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster.etcd.client import EtcdClient
from muster.etcd.election import Election
from muster.etcd.election_core import LeaderView, Tenure
from muster.etcd.keyvalue import KeyValue
from muster.etcd.watch_core import EventKind, WatchBatch, WatchEvent, WatchKind


def holder(revision: int, value: bytes = b"h:1") -> KeyValue:
    return KeyValue("k", value, revision, revision, 9)


def snapshot(revision: int, *kvs: KeyValue) -> WatchBatch:
    events = tuple(WatchEvent(EventKind.PUT, kv) for kv in kvs)
    return WatchBatch(WatchKind.SNAPSHOT, revision, events)


def changes(*events: WatchEvent) -> WatchBatch:
    return WatchBatch(WatchKind.CHANGES, events[-1].kv.mod_revision, events)


def put(revision: int) -> WatchEvent:
    return WatchEvent(EventKind.PUT, holder(revision))


def deletion(revision: int) -> WatchEvent:
    return WatchEvent(EventKind.DELETE, holder(revision))


TENURE = Tenure(lease_id=9, mod_revision=20, ttl_s=3.0, sent_at_s=100.0)


def test_a_candidate_waits_until_it_knows_that_the_key_is_vacant() -> None:
    view = LeaderView()
    assert not view.vacant
    assert view.after(snapshot(5)).vacant
    view = view.after(snapshot(5, holder(4)))
    assert not view.vacant
    assert view.after(changes(deletion(6))).vacant
    assert not view.after(changes(deletion(6), put(7))).vacant


def test_a_lost_attempt_outranks_older_events_but_not_a_snapshot() -> None:
    view = LeaderView().after(snapshot(5)).found(holder(8))
    assert not view.vacant
    assert view.after(changes(put(7), deletion(8))) == view
    assert view.after(changes(deletion(9))).vacant
    assert view.after(snapshot(2)) == LeaderView(2, None)


def test_holds_the_lead_until_just_before_the_lease_can_have_expired() -> None:
    view = LeaderView().after(snapshot(20, holder(20)))
    assert TENURE.ended_because(102.69, view) is None
    assert TENURE.ended_because(102.71, view) == "the lease was not renewed in time"


@given(sent=st.lists(st.floats(0.0, 5.0), max_size=10), ttl=st.integers(1, 10))
def test_never_reckons_past_what_etcd_granted(sent: list[float], ttl: int) -> None:
    tenure = TENURE
    for gap in sent:
        sent_at_s = tenure.sent_at_s + gap
        tenure = tenure.renewed(sent_at_s, ttl)
        assert tenure.sent_at_s == sent_at_s
        assert tenure.valid_until_s < sent_at_s + min(ttl, 3)
        assert sent_at_s < tenure.renew_at_s < tenure.valid_until_s


def test_an_answer_that_comes_late_does_not_take_time_back() -> None:
    renewed = TENURE.renewed(101.0, 3)
    assert renewed.renewed(100.5, 3) == renewed


def test_an_answer_met_after_a_long_stop_does_not_prolong_the_lead() -> None:
    # Sent before the process was stopped for 9 s, read after it.
    view = LeaderView().after(snapshot(20, holder(20)))
    assert TENURE.renewed(101.0, 3).ended_because(110.0, view) is not None


def test_ends_with_the_lease_or_the_key() -> None:
    mine = LeaderView().after(snapshot(20, holder(20)))
    assert TENURE.renewed(101.0, 0).ended_because(101.0, mine) == "the lease is gone"
    for batch in (changes(deletion(21)), changes(deletion(21), put(22)), snapshot(30, holder(22))):
        ended = TENURE.ended_because(101.0, mine.after(batch))
        assert ended == "the key was deleted or taken"


def test_a_watch_that_lags_behind_the_own_write_is_no_evidence() -> None:
    lagging = LeaderView().after(snapshot(19))
    assert lagging.vacant
    assert TENURE.ended_because(101.0, lagging) is None
    assert TENURE.ended_because(101.0, LeaderView()) is None


@pytest.mark.parametrize("ttl_s", [1.0, 2.5, 0.0])
def test_refuses_a_ttl_that_etcd_would_change(ttl_s: float) -> None:
    with pytest.raises(InvalidInput, match="ttl_s"):
        Election(EtcdClient(["h:1"]), ttl_s=ttl_s, value=b"v")
