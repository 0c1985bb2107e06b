"""What workers share, and what each has of it."""

from __future__ import annotations

import os

from clamsmtpd.circles import SharedRegister
from clamsmtpd.commons import Commons
from clamsmtpd.metrics import CLEAN, SESSIONS
from clamsmtpd.values import TcpAddress

ENDS = (TcpAddress("192.0.2.1", 1), TcpAddress("192.0.2.2", 25))


def test_one_worker_shares_nothing() -> None:
    before = os.listdir("/proc/self/fd")
    share = Commons(1, 5).share(0)
    assert os.listdir("/proc/self/fd") == before
    assert (share.worker, share.workers) == (0, 1)
    assert not isinstance(share.outgoing, SharedRegister)
    assert share.places.take()


def test_several_workers_share_numbers_places_and_connections() -> None:
    commons = Commons(3, 1)
    shares = [commons.share(worker) for worker in range(3)]
    shares[0].row[CLEAN] += 1
    shares[1].row[CLEAN] += 1
    assert commons.metrics.total(CLEAN) == 2
    assert shares[2].places.take()
    assert not shares[0].places.take()
    for share in shares:
        share.outgoing.add(ENDS)
        assert all(ENDS in other.outgoing for other in shares)
        share.outgoing.discard(ENDS)
        assert not any(ENDS in other.outgoing for other in shares)


def test_what_a_dead_worker_had_comes_back_and_what_others_have_stays() -> None:
    commons = Commons(2, 2)
    dead, living = commons.share(0), commons.share(1)
    for share in (dead, living):
        assert share.places.take()
        share.row[CLEAN] += 1
    dead.outgoing.add(ENDS)
    others = (ENDS[0], TcpAddress("192.0.2.3", 25))
    living.outgoing.add(others)
    commons.forget(0)
    assert [share.row[SESSIONS] for share in (dead, living)] == [0, 1]
    assert commons.metrics.total(CLEAN) == 2
    assert ENDS not in living.outgoing
    assert others in living.outgoing
    # Whoever comes to its place begins with nothing.
    next_one = commons.share(0)
    assert len(next_one.outgoing) == 0
    assert next_one.places.take()
