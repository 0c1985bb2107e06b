"""One epoll for all connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from clamsmtpd.poller import READABLE, WRITABLE, Poller
from tests.support.world import run


async def turns() -> None:
    """Let the loop notice whatever there is."""
    await asyncio.sleep(0.02)


def told(log: list[tuple[str, int]], name: str) -> Callable[[int], None]:
    return lambda events: log.append((name, events))


def test_who_is_ready_is_told_for_as_long_as_it_is() -> None:
    async def main() -> None:
        poller, log = Poller(), list[tuple[str, int]]()
        ours, theirs = socket.socketpair()
        with ours, theirs:

            def read(events: int) -> None:
                log.append((ours.recv(1).decode(), events))

            poller.watch(ours.fileno(), READABLE, read)
            await turns()
            assert log == []
            theirs.send(b"ab")
            await turns()
            assert log == [("a", READABLE), ("b", READABLE)]
            poller.forget(ours.fileno())
            theirs.send(b"c")
            await turns()
            assert len(log) == 2
        poller.close()

    run(main())


def test_what_is_waited_for_can_be_changed() -> None:
    async def main() -> None:
        poller, log = Poller(), list[tuple[str, int]]()
        ours, theirs = socket.socketpair()
        with ours, theirs:

            def ready(events: int) -> None:
                log.append(("ready", events))
                poller.change(ours.fileno(), READABLE)

            poller.watch(ours.fileno(), READABLE, ready)
            poller.change(ours.fileno(), WRITABLE)
            await turns()
            assert log == [("ready", WRITABLE)]
            poller.forget(ours.fileno())
        poller.close()

    run(main())


def test_who_was_forgotten_by_another_in_the_same_turn_is_not_told() -> None:
    async def main() -> None:
        poller, log = Poller(), list[str]()
        pairs = [socket.socketpair() for _ in range(2)]

        def forget_both(events: int) -> None:
            log.append("told")
            for ours, _ in pairs:
                poller.forget(ours.fileno())

        for ours, theirs in pairs:
            poller.watch(ours.fileno(), READABLE, forget_both)
            theirs.send(b"x")
        await turns()
        assert log == ["told"]
        poller.close()
        for ours, theirs in pairs:
            ours.close()
            theirs.close()

    run(main())


def test_a_descriptor_that_is_closed_needs_no_call_and_its_number_can_come_back() -> None:
    async def main() -> None:
        poller, log = Poller(), list[tuple[str, int]]()
        first, theirs = socket.socketpair()
        number = first.fileno()
        poller.watch(number, READABLE, told(log, "first"))
        poller.forget_closing(number)
        theirs.send(b"x")
        first.close()
        theirs.close()
        second, theirs = socket.socketpair()
        if theirs.fileno() == number:
            second, theirs = theirs, second
        assert second.fileno() == number
        poller.watch(number, WRITABLE, told(log, "second"))
        await turns()
        assert set(log) == {("second", WRITABLE)}
        poller.close()
        second.close()
        theirs.close()

    run(main())


def test_many_that_are_ready_at_once_are_all_told() -> None:
    async def main() -> None:
        poller, log = Poller(), list[tuple[str, int]]()
        pairs = [socket.socketpair() for _ in range(400)]
        for number, (ours, theirs) in enumerate(pairs):

            def once(events: int, ours: socket.socket = ours, number: int = number) -> None:
                log.append((str(number), events))
                poller.forget(ours.fileno())

            poller.watch(ours.fileno(), READABLE, once)
            theirs.send(b"x")
        await turns()
        assert sorted(int(name) for name, _ in log) == list(range(400))
        poller.close()
        for ours, theirs in pairs:
            ours.close()
            theirs.close()

    run(main())
