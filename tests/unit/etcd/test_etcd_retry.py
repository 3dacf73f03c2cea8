"""Which failed etcd calls are repeated."""

from __future__ import annotations

import pytest

from muster.etcd.retry import MAX_ATTEMPTS, Backoff, Failure, RetryBudget, classify, may_repeat

REFUSED_CONNECT = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
    "Failed to connect to remote host: Connection refused"
)


@pytest.mark.parametrize(
    ("code", "detail", "failure"),
    [
        ("UNAVAILABLE", REFUSED_CONNECT, Failure.NEVER_SENT),
        ("UNAVAILABLE", "errors resolving etcd.invalid:2379: [...]", Failure.NEVER_SENT),
        ("UNAVAILABLE", "Socket closed", Failure.UNCERTAIN),
        ("UNAVAILABLE", "etcdserver: request timed out", Failure.UNCERTAIN),
        ("UNAVAILABLE", "etcdserver: no leader", Failure.UNCERTAIN),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Failure.UNCERTAIN),
        ("NOT_FOUND", "etcdserver: requested lease not found", Failure.NO_LEASE),
        (
            "OUT_OF_RANGE",
            "etcdserver: mvcc: required revision has been compacted",
            Failure.NO_SUCH_REVISION,
        ),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Failure.REFUSED),
        ("PERMISSION_DENIED", "etcdserver: permission denied", Failure.REFUSED),
    ],
)
def test_classifies_what_etcd_and_grpc_say(code: str, detail: str, failure: Failure) -> None:
    assert classify(code, detail) is failure


def test_repeats_only_what_does_no_harm() -> None:
    assert may_repeat(Failure.NEVER_SENT, repeatable=False, attempt=1)
    assert may_repeat(Failure.UNCERTAIN, repeatable=True, attempt=1)
    assert not may_repeat(Failure.UNCERTAIN, repeatable=False, attempt=1)
    assert not may_repeat(Failure.REFUSED, repeatable=True, attempt=1)
    assert not may_repeat(Failure.NEVER_SENT, repeatable=True, attempt=MAX_ATTEMPTS)


def test_backoff_doubles_up_to_its_bound_with_full_jitter() -> None:
    backoff = Backoff(first_s=0.5, max_s=3.0)
    assert [backoff.delay_s(n, 1.0) for n in (1, 2, 3, 4, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.delay_s(3, 0.25) == 0.5
    assert backoff.delay_s(3, 0.0) == 0.0


def test_budget_allows_a_burst_and_then_a_share_of_successes() -> None:
    budget = RetryBudget(share=0.25, burst=2.0)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        budget.succeeded()
    assert not budget.take()
    budget.succeeded()
    assert budget.take()
    for _ in range(100):
        budget.succeeded()
    assert [budget.take() for _ in range(3)] == [True, True, False]
