"""Requests and replies on one connection, with a clamd that says what it is told, when it is told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamsmtpd.clamd import session as module
from clamsmtpd.clamd.protocol import FILDES, INSTREAM
from clamsmtpd.clamd.session import Answer, ClamdSession, Lost, why
from tests.support.loops import Run

#: A limit that no test may reach, and one that a test waits for.
LONG, SHORT = 20.0, 0.25

#: What begins a session.
BEGIN = b"zIDSESSION\0"


class Peer:
    """clamd's end of the connection; ``ended`` counts how often ours was told to be over."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.ended = 0
        self.files: list[bytes] = []

    def heard(self) -> bytes:
        """Return all octets that have come since it was asked last; the files go to ``files``."""
        octets = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(self.socket, 65536, 8)
                if not data:
                    break
                octets += data
                for descriptor in descriptors:
                    with os.fdopen(descriptor, "rb") as file:
                        self.files.append(file.read())
        return octets

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.send(piece)
            await settle()

    async def hang_up(self, *, reads: bool = True) -> None:
        if reads:
            self.heard()
        self.socket.close()
        await settle()

    def on_ended(self, _session: ClamdSession) -> None:
        self.ended += 1


async def settle() -> None:
    """Let the event loop do what there is to do."""
    for _ in range(3):
        await asyncio.sleep(0)
    await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def connected(
    *, kept: bool = True, kind: type[socket.socket] = socket.socket
) -> AsyncIterator[tuple[ClamdSession, Peer]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        theirs.setblocking(False)
        sock = kind(fileno=ours.detach())
        sock.setblocking(False)
        peer = Peer(theirs)
        session = ClamdSession(sock, ended=peer.on_ended, kept=kept)
        try:
            yield session, peer
        finally:
            session.close()
            assert peer.ended == 1


async def all_of(*answers: Awaitable[Answer]) -> list[Answer]:
    return [await answer for answer in answers]


@contextlib.contextmanager
def file(text: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("test")
    try:
        os.pwrite(descriptor, text, 0)
        yield descriptor
    finally:
        os.close(descriptor)


def cuttings(octets: bytes) -> list[list[bytes]]:
    """Return the octets whole and one by one."""
    return [[octets], [octets[at : at + 1] for at in range(len(octets))]]


# ---- requests and replies ------------------------------------------------------------------------


def test_requests_go_out_at_once_and_each_with_its_file(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            with file(b"first") as descriptor:
                first = session.ask(FILDES, descriptor, limit=LONG)
            with file(b"second") as descriptor:
                second = session.ask(FILDES, descriptor, limit=LONG)
            assert peer.heard() == BEGIN + FILDES + FILDES
            assert peer.files == [b"first", b"second"]
            await peer.say(b"1: fd[10]: OK\0", b"2: fd[11]: Evil FOUND\0")
            assert (await first, await second) == (b"fd[10]: OK", b"fd[11]: Evil FOUND")
            assert session.usable

    run(main())


def test_replies_find_their_requests_in_any_order_and_any_cutting(run: Run) -> None:
    async def main() -> None:
        for order in itertools.permutations((1, 2, 3)):
            said = b"".join(b"%d: reply to %d\0" % (number, number) for number in order)
            for pieces in cuttings(said):
                async with connected() as (session, peer):
                    answers = [session.ask(b"zSCAN /%d\0" % number, limit=LONG) for number in (1, 2, 3)]
                    await peer.say(*pieces)
                    assert await all_of(*answers) == [b"reply to 1", b"reply to 2", b"reply to 3"]

    run(main())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(order=st.permutations(range(1, 13)), cuts=st.sets(st.integers(1, 300)), gone=st.sets(st.integers(1, 12)))
def test_whatever_comes_in_whatever_order_nobody_gets_anothers_verdict(
    order: list[int], cuts: set[int], gone: set[int]
) -> None:
    async def main() -> None:
        said = b"".join(b"%d: fd[%d]: V%d FOUND\0" % (number, number, number) for number in order)
        edges = sorted({0, len(said), *(cut for cut in cuts if cut < len(said))})
        async with connected() as (session, peer):
            answers = {number: session.ask(FILDES, limit=LONG) for number in range(1, 13)}
            for number in gone:
                answers[number].cancel()
            for start, stop in itertools.pairwise(edges):
                peer.socket.send(said[start:stop])
                await asyncio.sleep(0)
            await settle()
            for number, answer in answers.items():
                if number in gone:
                    assert answer.cancelled()
                else:
                    assert answer.result() == b"fd[%d]: V%d FOUND" % (number, number)
            assert session.usable

    uvloop.run(main())


@pytest.mark.parametrize(
    "strange",
    [
        b"3: fd[10]: OK\0",
        b"0: fd[10]: OK\0",
        b"2: fd[10]: OK\0" + b"2: fd[10]: OK\0",
        b"2: fd[10]: OK\0" + b"2: fd[10]: Evil FOUND\0",
        b"2: fd[10]: OK\0" + b"3: fd[10]: OK\0",
        b"3: fd[10]: OK\0" + b"2: fd[10]: OK\0",
    ],
)
def test_who_gives_a_reply_that_nobody_asked_for_is_not_believed(run: Run, strange: bytes) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            first, second = session.ask(FILDES, limit=LONG), session.ask(FILDES, limit=LONG)
            await peer.say(b"1: fd[10]: Evil FOUND\0", strange)
            assert await first == b"fd[10]: Evil FOUND"
            assert await second == Lost("it gave a reply that nobody asked for")
            assert (session.usable, peer.ended) == (False, 1)

    run(main())


def test_a_reply_that_comes_twice_ends_the_session(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            first, second = session.ask(FILDES, limit=LONG), session.ask(FILDES, limit=LONG)
            await peer.say(b"1: fd[10]: OK\0", b"1: fd[10]: OK\0")
            assert await first == b"fd[10]: OK"
            assert await second == Lost("it gave a reply that nobody asked for")

    run(main())


def test_a_reply_that_comes_after_its_message_was_given_up_is_nobodys(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            first, second = session.ask(FILDES, limit=LONG), session.ask(FILDES, limit=LONG)
            first.cancel()
            await peer.say(b"1: fd[10]: Evil FOUND\0", b"2: fd[11]: OK\0")
            assert await second == b"fd[11]: OK"
            assert session.usable

    run(main())


@pytest.mark.parametrize(
    ("last", "lost"),
    [
        (b"", Lost("it closed the connection without a reply")),
        (b"2: fd[1", Lost('it closed the connection in the middle of its reply "2: fd[1"')),
        (
            b"COMMAND READ TIMED OUT\n",
            Lost(
                'it answered "COMMAND READ TIMED OUT": '
                "CommandReadTimeout or ReadTimeout in clamd.conf is too short, or it has too much to do"
            ),
        ),
        (b"UNKNOWN COMMAND\0", Lost('it answered "UNKNOWN COMMAND"', strange=b"UNKNOWN COMMAND")),
    ],
)
def test_when_clamd_ends_a_session_all_that_was_owed_is_lost(run: Run, last: bytes, lost: Lost) -> None:
    async def main() -> None:
        for pieces in cuttings(b"1: fd[10]: OK\0" + last):
            async with connected() as (session, peer):
                answers = [session.ask(FILDES, limit=LONG) for _ in range(3)]
                await peer.say(*pieces)
                if not lost.strange and b"\n" not in last:
                    await peer.hang_up()
                assert await all_of(*answers) == [b"fd[10]: OK", lost, lost]
                assert (session.usable, peer.ended) == (False, 1)

    run(main())


def test_what_is_asked_when_the_session_has_ended_is_lost_at_once(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            await peer.hang_up()
            assert peer.ended == 1
            lost = Lost("it closed the connection without a reply")
            assert await session.ask(FILDES, limit=LONG) == lost
            assert await session.begin(INSTREAM)[1] == lost
            session.finish(LONG)
            assert peer.ended == 1

    run(main())


def test_clamd_leaves_in_the_moment_of_a_request(run: Run) -> None:
    """What it said last is still read: that is the reason."""

    async def main() -> None:
        async with connected() as (session, peer):
            first = session.ask(FILDES, limit=LONG)
            peer.heard()
            peer.socket.send(b"1: fd[10]: Evil FOUND\0")
            # Nothing of it has been read when the next is asked.
            peer.socket.close()
            second = session.ask(FILDES, limit=LONG)
            assert not session.usable
            assert await first == b"fd[10]: Evil FOUND"
            assert await second == Lost("it closed the connection without a reply")

    run(main())


@pytest.mark.parametrize(("kept", "asks"), [(True, True), (True, False), (False, False)])
def test_clamd_leaves_behind_a_reply_and_without_having_read(
    run: Run, monkeypatch: pytest.MonkeyPatch, *, kept: bool, asks: bool
) -> None:
    """The event loop tells of the reply and the reset by one call."""
    if not asks:
        monkeypatch.setattr(module, "PING_INTERVAL", 0.05)

    async def main() -> None:
        async with connected(kept=kept) as (session, peer):
            answers = [session.ask(FILDES, limit=LONG) for _ in range(2 if kept else 1)]
            peer.socket.send(b"1: fd[10]: OK\0" if kept else b"fd[10]: O")
            await peer.hang_up(reads=False)
            if asks:
                # This is the third that is owed, and the first that is told.
                answers.append(session.ask(FILDES, limit=LONG))
            began = time.monotonic()
            heard = [await answer for answer in answers]
            lost = Lost("Connection reset by peer")
            assert heard == [b"fd[10]: OK" if kept else lost, lost, lost][: len(heard)]
            assert time.monotonic() - began < 1

    run(main())


def test_a_connection_for_one_scan_ends_with_its_reply(run: Run) -> None:
    async def main() -> None:
        async with connected(kept=False) as (session, peer):
            answer = session.ask(b"zSCAN /x\0", limit=LONG)
            assert not session.usable
            assert peer.heard() == b"zSCAN /x\0"
            await peer.say(b"/x: OK\0")
            assert await answer == b"/x: OK"
            assert peer.ended == 1

    run(main())


def test_octets_behind_the_one_reply(run: Run) -> None:
    async def main() -> None:
        async with connected(kept=False) as (session, peer):
            answer = session.ask(b"zSCAN /x\0", limit=LONG)
            await peer.say(b"/x: OK\0/x: Evil FOUND\0")
            assert await answer == Lost("octets behind its reply")

    run(main())


# ---- requests that cannot be sent now ------------------------------------------------------------


class Reluctant(socket.socket):
    """A socket that takes no descriptors as long as ``refusal`` is set, and of other octets as many as ``takes``."""

    refusal = 0
    takes = 1000
    broken = False

    def sendmsg(self, *args: Any) -> int:
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        return super().sendmsg(*args)

    def send(self, data: bytes, *_: int) -> int:  # type: ignore[override]
        if self.broken:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return super().send(data[: self.takes])


def fill(sock: socket.socket) -> int:
    """Fill a connection; return with how many octets."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            count += socket.socket.send(sock, b"x" * 4096)
    return count


def drain(peer: Peer, count: int) -> None:
    while count > 0:
        count -= len(peer.socket.recv(count))


def test_requests_wait_for_a_full_connection_and_keep_their_order(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            count = fill(session.socket)
            with file(b"first") as one, file(b"second") as two:
                first, second = session.ask(FILDES, one, limit=LONG), session.ask(FILDES, two, limit=LONG)
                await settle()
                drain(peer, count)
                await settle()
                assert peer.heard() == BEGIN + FILDES + FILDES
                assert peer.files == [b"first", b"second"]
            await peer.say(b"2: fd[11]: Evil FOUND\0", b"1: fd[10]: OK\0")
            assert (await first, await second) == (b"fd[10]: OK", b"fd[11]: Evil FOUND")

    run(main())


def test_a_message_that_is_given_up_while_it_waits_is_never_sent(run: Run) -> None:
    """Its descriptor is closed, and the number may be that of another message by then."""

    async def main() -> None:
        async with connected() as (session, peer):
            count = fill(session.socket)
            with file(b"gone") as descriptor:
                gone = session.ask(FILDES, descriptor, limit=LONG)
            gone.cancel()
            with file(b"other") as reused:
                assert reused == descriptor
                with file(b"asked") as asked:
                    answer = session.ask(FILDES, asked, limit=LONG)
                    drain(peer, count)
                    await settle()
            assert peer.heard() == BEGIN + FILDES
            assert peer.files == [b"asked"]
            await peer.say(b"1: fd[10]: OK\0")
            assert await answer == b"fd[10]: OK"

    run(main())


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ETOOMANYREFS])
def test_too_many_descriptors_under_way_are_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.01)

    async def main() -> None:
        async with connected(kind=Reluctant) as (session, peer):
            monkeypatch.setattr(Reluctant, "refusal", code)
            with file(b"text") as descriptor:
                answer = session.ask(FILDES, descriptor, limit=LONG)
                await asyncio.sleep(0.03)
                assert peer.heard() == b""
                assert session.usable
                monkeypatch.setattr(Reluctant, "refusal", 0)
                await asyncio.sleep(0.03)
            assert (peer.heard(), peer.files) == (BEGIN + FILDES, [b"text"])
            await peer.say(b"1: fd[10]: OK\0")
            assert await answer == b"fd[10]: OK"

    run(main())


def test_a_session_that_ends_while_a_request_waits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.01)

    async def main() -> None:
        async with connected(kind=Reluctant) as (session, peer):
            monkeypatch.setattr(Reluctant, "refusal", errno.ETOOMANYREFS)
            with file(b"text") as descriptor:
                answer = session.ask(FILDES, descriptor, limit=LONG)
                await peer.hang_up()
                assert await answer == Lost("it closed the connection without a reply")
            await asyncio.sleep(0.03)

    run(main())


def test_no_more_is_asked_at_once_than_clamd_takes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OWED_MAX", 2)

    async def main() -> None:
        async with connected() as (session, peer):
            answers = [session.ask(b"zSCAN /%d\0" % number, limit=LONG) for number in range(5)]
            assert peer.heard() == BEGIN + b"zSCAN /0\0zSCAN /1\0"
            answers[2].cancel()
            await peer.say(b"2: /1: OK\0")
            assert peer.heard() == b"zSCAN /3\0", "nobody waits for the one in between any more"
            await peer.say(b"1: /0: OK\0" + b"3: /3: OK\0")
            assert peer.heard() == b"zSCAN /4\0"
            await peer.say(b"4: /4: OK\0")
            del answers[2]
            assert await all_of(*answers) == [b"/0: OK", b"/1: OK", b"/3: OK", b"/4: OK"]

    run(main())


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.EPIPE, "it closed the connection without a reply"), (errno.EBADF, "Bad file descriptor")],
)
def test_a_waiting_request_that_fails(run: Run, monkeypatch: pytest.MonkeyPatch, code: int, reason: str) -> None:
    monkeypatch.setattr(module, "OWED_MAX", 1)

    async def main() -> None:
        async with connected(kind=Reluctant) as (session, peer):
            first = session.ask(b"zPING\0", limit=LONG)
            with file(b"text") as descriptor:
                second, third = session.ask(FILDES, descriptor, limit=LONG), session.ask(FILDES, descriptor, limit=LONG)
                monkeypatch.setattr(Reluctant, "refusal", code)
                await peer.say(b"1: PONG\0")
                assert not session.usable
                await peer.hang_up()
                assert await all_of(first, second, third) == [b"PONG", Lost(reason), Lost(reason)]

    run(main())


def test_half_a_request_is_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reluctant, "takes", 15)

    async def main() -> None:
        async with connected(kind=Reluctant) as (session, peer):
            assert await session.ask(b"zSCAN /x\0", limit=LONG) == Lost("it took only a part of a request")
            assert peer.ended == 1

    run(main())


def test_a_connection_that_is_reset(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            answer = session.ask(FILDES, limit=LONG)
            await peer.hang_up(reads=False)
            assert await answer == Lost("Connection reset by peer")

    run(main())


# ---- streams -------------------------------------------------------------------------------------


def test_a_stream_has_the_session_alone_until_it_is_answered(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            for number in (1, 2):
                opening, answer = session.begin(INSTREAM)
                assert opening == (BEGIN + INSTREAM if number == 1 else INSTREAM)
                usable = [session.usable]
                session.finish(LONG)
                assert [*usable, session.usable] == [False, True]
                await peer.say(b"%d: stream: OK\0" % number)
                assert await answer == b"stream: OK"

    run(main())


def test_a_stream_that_is_answered_before_its_end_spoils_the_session(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            _, answer = session.begin(INSTREAM)
            await peer.say(b"1: INSTREAM size limit exceeded. ERROR\0")
            assert await answer == b"INSTREAM size limit exceeded. ERROR"
            assert (session.usable, peer.ended) == (False, 1)
            session.finish(LONG)
            assert not session.usable

    run(main())


# ---- time ----------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.05)
    monkeypatch.setattr(module, "IDLE_LIMIT", 0.1)


async def heard_for(peer: Peer, seconds: float, *, says: Callable[[int], bytes] = lambda _: b"") -> bytes:
    heard = b""
    for turn in range(int(seconds / 0.01)):
        await asyncio.sleep(0.01)
        heard += peer.heard()
        if said := says(turn):
            peer.socket.send(said)
    return heard


@pytest.mark.usefixtures("hasty")
def test_in_a_long_scan_clamd_is_kept_awake(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            answer = session.ask(FILDES, limit=LONG)
            heard = await heard_for(peer, 0.4)
            assert heard.startswith(BEGIN + FILDES + b"zPING\0zPING\0")
            # One for each 0.05 s; on a machine that has much to do, the 0.4 s may be many more.
            assert heard.count(b"zPING\0") in range(3, 40)
            await peer.say(b"2: PONG\0" + b"1: fd[10]: OK\0")
            assert await answer == b"fd[10]: OK"

    run(main())


@pytest.mark.usefixtures("hasty")
def test_replies_alone_do_not_keep_clamd_awake(run: Run) -> None:
    """Its clock counts from the last command, however much it has to say itself."""

    async def main() -> None:
        async with connected() as (session, peer):
            answers = [session.ask(FILDES, limit=LONG) for _ in range(100)]
            heard = await heard_for(peer, 0.4, says=lambda turn: b"%d: fd[10]: OK\0" % (turn + 1))
            # One for each 0.05 s; on a machine that has much to do, the 0.4 s may be many more.
            assert heard.count(b"zPING\0") in range(3, 40)
            assert [answer.done() for answer in answers].count(True) >= 30
            assert session.usable

    run(main())


@pytest.mark.usefixtures("hasty")
def test_a_connection_for_one_scan_needs_nothing_to_keep_it_awake(run: Run) -> None:
    async def main() -> None:
        async with connected(kept=False) as (session, peer):
            answer = session.ask(FILDES, limit=LONG)
            assert await heard_for(peer, 0.2) == FILDES
            assert not answer.done()

    run(main())


@pytest.mark.usefixtures("hasty")
def test_nothing_is_said_within_a_stream(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            first = session.ask(FILDES, limit=LONG)
            await peer.say(b"1: fd[10]: OK\0")
            assert await first
            peer.heard()
            session.begin(INSTREAM)
            assert await heard_for(peer, 0.3) == b""
            assert peer.ended == 0

    run(main())


@pytest.mark.usefixtures("hasty")
def test_a_connection_that_takes_no_ping_is_not_asked_too_often(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            answer = session.ask(FILDES, limit=LONG)
            count = fill(session.socket)
            await asyncio.sleep(0.12)
            drain(peer, len(BEGIN + FILDES) + count)
            assert (await heard_for(peer, 0.2)).count(b"zPING\0") >= 1
            await peer.say(b"1: fd[10]: OK\0")
            assert await answer == b"fd[10]: OK"

    run(main())


@pytest.mark.usefixtures("hasty")
def test_a_session_in_which_nothing_is_asked_is_ended(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            first = session.ask(FILDES, limit=LONG)
            await asyncio.sleep(0.03)
            await peer.say(b"1: fd[10]: OK\0")
            assert await first
            await asyncio.sleep(0.05)
            assert peer.ended == 0
            second = session.ask(FILDES, limit=LONG)
            await peer.say(b"2: fd[10]: OK\0")
            assert await second
            await asyncio.sleep(0.07)
            assert (peer.ended, session.usable) == (0, True)
            await asyncio.sleep(0.15)
            assert (peer.ended, session.usable) == (1, False)

    run(main())


def test_who_is_late_is_not_asked_again_and_others_go_on_waiting(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            first = session.ask(FILDES, limit=SHORT)
            await asyncio.sleep(SHORT * 0.6)
            second = session.ask(FILDES, limit=SHORT)
            lost: Answer = Lost("no answer within 0.25 seconds", timed_out=True)
            assert await first == lost
            assert (session.usable, peer.ended) == (False, 0)
            await peer.say(b"2: fd[11]: OK\0")
            assert await second == b"fd[11]: OK"
            assert peer.ended == 1, "nobody waits any more"

    run(main())


def test_when_all_are_late_the_session_ends(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            answers = [session.ask(FILDES, limit=SHORT) for _ in range(3)]
            answers[1].cancel()
            lost = Lost("no answer within 0.25 seconds", timed_out=True)
            assert [await answers[0], await answers[2]] == [lost, lost]
            await settle()
            assert peer.ended == 1

    run(main())


def test_a_request_that_cannot_be_sent_is_late_as_well(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, _):
            fill(session.socket)
            assert await session.ask(FILDES, limit=SHORT) == Lost("no answer within 0.25 seconds", timed_out=True)

    run(main())


@pytest.mark.usefixtures("hasty")
def test_nothing_overtakes_a_request_that_waits(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, peer):
            count = fill(session.socket)
            answer = session.ask(FILDES, limit=LONG)
            await asyncio.sleep(0.12)
            drain(peer, count)
            await settle()
            assert peer.heard() == BEGIN + FILDES
            await peer.say(b"1: fd[10]: OK\0")
            assert await answer == b"fd[10]: OK"

    run(main())


@pytest.mark.usefixtures("hasty")
def test_a_ping_that_fails_ends_the_session(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(kind=Reluctant) as (session, peer):
            answer = session.ask(FILDES, limit=LONG)
            monkeypatch.setattr(Reluctant, "broken", True)
            assert await answer == Lost("No buffer space available")
            assert peer.ended == 1

    run(main())


def test_a_request_after_a_pause_has_its_own_limit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.02)

    async def main() -> None:
        async with connected() as (session, peer):
            first = session.ask(FILDES, limit=SHORT)
            await peer.say(b"1: fd[10]: OK\0")
            assert await first
            await asyncio.sleep(0.1)
            # By now it sleeps until the session has been idle for long.
            lost = Lost("no answer within 0.25 seconds", timed_out=True)
            assert await asyncio.wait_for(session.ask(FILDES, limit=SHORT), 2) == lost

    run(main())


# ---- oddities of sockets and resolvers -----------------------------------------------------------


def test_a_wakeup_for_nothing(run: Run) -> None:
    async def main() -> None:
        async with connected() as (session, _):
            session._read()
            assert session.usable

    run(main())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
    ],
)
def test_reasons_say_what_is_wrong_and_no_more(error: OSError, reason: str) -> None:
    assert why(error) == reason
