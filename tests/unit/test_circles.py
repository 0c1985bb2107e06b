"""The register of our own connections, for one worker and for several."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import pytest

from clamsmtpd import circles
from clamsmtpd.circles import Ends, Register, SharedRegister, region_size
from clamsmtpd.values import TcpAddress

#: What lies in front of the regions is somebody else's.
START = 24


def ends(port: int) -> Ends:
    return TcpAddress("192.0.2.1", port), TcpAddress("192.0.2.2", 25)


def memory(connections: int, workers: int) -> mmap.mmap:
    return mmap.mmap(-1, START + workers * region_size(connections))


def registers(connections: int = 10, workers: int = 2) -> tuple[mmap.mmap, list[SharedRegister]]:
    shared = memory(connections, workers)
    return shared, [SharedRegister(shared, START, connections, workers, worker) for worker in range(workers)]


@pytest.mark.parametrize("make", [set, lambda: registers()[1][1]], ids=["one worker", "several"])
def test_what_is_entered_is_there_until_it_is_taken_out(make: Callable[[], Register]) -> None:
    register = make()
    assert ends(1) not in register
    register.add(ends(1))
    register.add(ends(2))
    register.add(ends(2))
    assert ends(1) in register
    assert ends(2) in register
    assert ends(3) not in register
    assert len(register) == 2
    register.discard(ends(2))
    register.discard(ends(2))
    register.discard(ends(3))
    assert ends(1) in register
    assert ends(2) not in register
    assert len(register) == 1


def test_a_connection_is_known_by_its_two_ends_in_their_order() -> None:
    _, (register, _) = registers()
    register.add(ends(1))
    ours, theirs = ends(1)
    assert (theirs, ours) not in register
    assert (ours, ours) not in register
    assert (ours, None) not in register


def test_every_worker_sees_what_another_has_entered() -> None:
    _, (one, other) = registers()
    one.add(ends(1))
    assert ends(1) in other
    # Only whoever has made a connection can say that it is over.
    other.discard(ends(1))
    assert ends(1) in other
    one.discard(ends(1))
    assert ends(1) not in other


# Python 3.12 warns of what is no matter here: the test runner's threads do not exist in a worker.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_worker_in_another_process_sees_it_too() -> None:
    _, (one, other) = registers()
    if not (pid := os.fork()):
        one.add((TcpAddress("2001:db8::7", 7), TcpAddress("2001:db8::8", 25)))
        os._exit(0)
    os.waitpid(pid, 0)
    assert (TcpAddress("2001:db8::7", 7), TcpAddress("2001:db8::8", 25)) in other


def test_connections_over_unix_sockets_take_no_room() -> None:
    shared, (register, _) = registers()
    for _ in range(1000):
        register.add((None, None))
    assert len(register) == 0
    assert not any(shared[START:])
    register.discard((None, None))


def test_each_worker_has_room_for_all_connections() -> None:
    number = 3000
    shared, (one, other) = registers(number)
    for port in range(number):
        one.add(ends(port))
        other.add(ends(port + number))
    assert all(ends(port) in register for port in range(2 * number) for register in (one, other))
    assert not any(ends(port) in one for port in range(2 * number, 3 * number))
    for port in range(number):
        one.discard(ends(port))
        other.discard(ends(port + number))
    assert not any(shared[:])


def test_nothing_is_written_outside_of_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of them want the last cell; what finds no room is not entered, and hurts nobody.
    monkeypatch.setattr(circles, "_entry", lambda ends: circles._CELL.pack(-1 - (ends[0].port << 20)))
    shared, (one, other) = registers()
    for port in range(100):
        one.add(ends(port))
    assert len(one) == circles._WINDOW
    assert not any(shared[:START])
    assert not any(shared[START + region_size(10) :])
    for port in range(100):
        one.discard(ends(port))
    assert not any(shared[:])
    assert ends(1) not in other


def test_two_neighbours_do_not_look_like_a_third() -> None:
    shared, (register, _) = registers()
    home = START
    # The second half of one cell and the first half of the next are the entry that is looked for.
    entry = bytes(4) + b"\1\2\3\4"
    shared[home + 4 : home + 12] = entry
    assert register._find(START, entry) == -1
    shared[home + 16 : home + 24] = entry
    assert register._find(START, entry) == home + 16
