"""Scans by the real clamd, over both kinds of socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from clamsmtpd.clamd.client import Scanner
from clamsmtpd.clamd.protocol import Replies
from clamsmtpd.spool import Spool
from clamsmtpd.values import Address, Clean, Infected, Oversize, UnixAddress, Unscanned, Verdict
from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.scanners import judge
from tests.support.spooled import wire

pytestmark = pytest.mark.integration

STREAM_MAX = 1_000_000
KINDS = ("unix", "tcp")


@pytest.fixture(scope="module")
def strict() -> Iterator[Clamd]:
    """A clamd with little patience."""
    settings = (f"StreamMaxLength {STREAM_MAX}", "CommandReadTimeout 1", "ReadTimeout 1", "MaxQueue 4", "MaxThreads 2")
    with Clamd(*settings) as clamd:
        yield clamd


def address_of(clamd: Clamd, kind: str) -> Address:
    return clamd.unix if kind == "unix" else clamd.tcp


@contextlib.contextmanager
def message(directory: Path, *pieces: bytes, stuffed: bool = False) -> Iterator[Spool]:
    with contextlib.closing(Spool(str(directory), "clamsmtpd-10002A")) as spool:
        for piece in pieces:
            spool.append(piece)
        spool.seal(stuffed=stuffed)
        yield spool


def scan(address: Address, spool: Spool, *, time_out: float = 30, by_path: bool = False) -> Verdict:
    async def main() -> Verdict:
        with contextlib.closing(Scanner(address, time_out=time_out)) as scanner:
            # A clamd that takes no descriptors is left to the unit tests; these do.
            scanner._passes_descriptors = not by_path
            return await judge(scanner, spool)

    return uvloop.run(main())


HARMLESS = b"Subject: x\r\n\r\nharmless\r\n"
# Much more than stays in memory. The test file is at its end: every octet must have come through.
PADDING = (b"p" * 70 + b"\r\n") * 10_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("pieces", "verdict"),
    [
        ((), Clean()),
        ((HARMLESS,), Clean()),
        ((HARMLESS, EICAR, b"\r\n"), Infected(EICAR_NAME)),
        ((HARMLESS, PADDING), Clean()),
        ((HARMLESS, PADDING, EICAR, b"\r\n"), Infected(EICAR_NAME)),
    ],
    ids=["empty", "small", "small, infected", "large", "large, infected"],
)
def test_verdicts(clamd: Clamd, tmp_path: Path, kind: str, pieces: tuple[bytes, ...], verdict: Verdict) -> None:
    with message(tmp_path, *pieces) as spool:
        assert scan(address_of(clamd, kind), spool) == verdict
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
def test_stuffed_dots_hide_nothing(clamd: Clamd, tmp_path: Path, kind: str, padding: bytes) -> None:
    """The test file has no line that starts with a dot; with a CRLF in its middle it would."""
    with message(tmp_path, padding, b"..", b"\r\n", EICAR, b"\r\n", stuffed=True) as spool:
        assert scan(address_of(clamd, kind), spool) == Infected(EICAR_NAME)
        assert b"".join(wire(spool)) == padding + b"..\r\n" + EICAR + b"\r\n"


def test_the_log_of_clamd_names_the_connection(clamd: Clamd, tmp_path: Path) -> None:
    with message(tmp_path, EICAR) as spool:
        scan(clamd.unix, spool)
    assert "/memfd:clamsmtpd-10002A" in clamd.log.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once(clamd: Clamd, tmp_path: Path, kind: str) -> None:
    async def main() -> list[Verdict]:
        with contextlib.ExitStack() as stack:
            scanner = stack.enter_context(contextlib.closing(Scanner(address_of(clamd, kind), time_out=30)))
            texts = [HARMLESS, EICAR] * 100
            spools = [stack.enter_context(message(tmp_path, text)) for text in texts]
            return await asyncio.gather(*(judge(scanner, spool) for spool in spools))

    assert uvloop.run(main()) == [Clean(), Infected(EICAR_NAME)] * 100


def test_a_path_where_descriptors_are_not_taken(clamd: Clamd, tmp_path: Path) -> None:
    (tmp_path / "real: OK").mkdir()
    (tmp_path / "link").symlink_to("real: OK")
    for directory in (tmp_path / "real: OK", tmp_path / "link"):
        for text, verdict in ((HARMLESS, Clean()), (EICAR, Infected(EICAR_NAME)), (b"", Clean())):
            with message(directory, text) as spool:
                assert scan(clamd.unix, spool, by_path=True) == verdict
        assert os.listdir(directory) == []


def test_a_path_that_clamd_cannot_open(clamd: Clamd, tmp_path: Path) -> None:
    with message(tmp_path, HARMLESS) as spool:
        os.unlink(spool.path())
        verdict = scan(clamd.unix, spool, by_path=True)
    assert isinstance(verdict, Unscanned)
    assert "No such file or directory" in verdict.reason


def test_a_command_that_clamd_does_not_have(clamd: Clamd) -> None:
    """What the fallback to a path rests on."""
    assert clamd.ask(b"FILDEZ") == b"UNKNOWN COMMAND\0"


def test_a_text_above_the_limit_of_streams(strict: Clamd, tmp_path: Path) -> None:
    reason = 'it answered "INSTREAM size limit exceeded. ERROR": the message is larger than StreamMaxLength'
    with message(tmp_path, b"x" * STREAM_MAX) as spool:
        assert scan(strict.tcp, spool) == Clean()
    for size in (STREAM_MAX + 1, 20 * STREAM_MAX):
        with message(tmp_path, b"x" * size) as spool:
            verdict = scan(strict.tcp, spool)
            assert verdict == Oversize(f"{reason} in clamd.conf")


def test_half_a_command_is_answered_with_a_line_end(strict: Clamd) -> None:
    """Even in the z form; whoever waits for the NUL waits until clamd closes."""
    with socket.create_connection((strict.tcp.host, strict.tcp.port), timeout=20) as connection:
        connection.sendall(b"zINS")
        reply = b"".join(iter(lambda: connection.recv(4096), b""))
    assert reply == b"COMMAND READ TIMED OUT\n"
    for numbered in (False, True):
        replies = Replies(numbered=numbered)
        assert replies.feed(reply) == []
        assert replies.fault.startswith('it answered "COMMAND READ TIMED OUT"')


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_its_queue_holds(strict: Clamd, tmp_path: Path, kind: str) -> None:
    async def main() -> list[Verdict]:
        with contextlib.ExitStack() as stack:
            scanner = stack.enter_context(contextlib.closing(Scanner(address_of(strict, kind), time_out=30)))
            spools = [stack.enter_context(message(tmp_path, EICAR)) for _ in range(300)]
            return await asyncio.gather(*(judge(scanner, spool) for spool in spools))

    assert set(uvloop.run(main())) == {Infected(EICAR_NAME)}


async def scan_all(scanner: Scanner, spools: list[Spool], *, at_once: int) -> list[Verdict]:
    """Keep so many scans going until all are done."""
    verdicts: dict[int, Verdict] = {}
    left = iter(enumerate(spools))

    async def work() -> None:
        for number, spool in left:
            verdicts[number] = await judge(scanner, spool)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return [verdicts[number] for number in range(len(spools))]


def test_many_through_one_session_each_with_its_own_verdict(clamd: Clamd, tmp_path: Path) -> None:
    """Sizes differ, so that replies come out of order; clean and infected are matched by number."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            scanner = stack.enter_context(contextlib.closing(Scanner(clamd.unix, time_out=30)))
            spools, wanted = [], []
            for number in range(400):
                padding = PADDING[: (number % 7) ** 2 * 72 * 50] + b"%d\r\n" % number
                infected = number % 3 == 0
                text = (padding, EICAR, b"\r\n") if infected else (HARMLESS, padding)
                spools.append(stack.enter_context(message(tmp_path, *text)))
                wanted.append(Infected(EICAR_NAME) if infected else Clean())
            assert await scan_all(scanner, spools, at_once=150) == wanted
            assert len(scanner._sessions) == 1

    uvloop.run(main())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_clamd_that_ends_under_load_gives_no_wrong_verdict(tmp_path: Path, kind: str, end: signal.Signals) -> None:
    async def main(clamd: Clamd) -> tuple[list[Verdict], list[Verdict]]:
        with contextlib.ExitStack() as stack:
            scanner = stack.enter_context(contextlib.closing(Scanner(address_of(clamd, kind), time_out=20)))
            texts = [(HARMLESS, PADDING[: 72 * (number + 1)], EICAR * (number % 2)) for number in range(300)]
            spools = [stack.enter_context(message(tmp_path, *text)) for text in texts]
            scans = asyncio.create_task(scan_all(scanner, spools, at_once=40))
            await asyncio.sleep(0.05)
            clamd.send(end)
            before = await scans
            clamd.restart()
            return before, await scan_all(scanner, spools[:50], at_once=20)

    with Clamd() as clamd:
        before, after = uvloop.run(main(clamd))
    true = [Clean(), Infected(EICAR_NAME)] * 150
    assert all(verdict == truth or isinstance(verdict, Unscanned) for verdict, truth in zip(before, true, strict=True))
    assert any(isinstance(verdict, Unscanned) for verdict in before), "or it ended too late"
    assert after == true[:50]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reload_under_load_costs_no_verdict(tmp_path: Path, kind: str) -> None:
    async def main(clamd: Clamd) -> list[Verdict]:
        with contextlib.ExitStack() as stack:
            scanner = stack.enter_context(contextlib.closing(Scanner(address_of(clamd, kind), time_out=20)))
            texts = [(HARMLESS, PADDING[: 72 * (number + 1)], EICAR * (number % 2)) for number in range(600)]
            spools = [stack.enter_context(message(tmp_path, *text)) for text in texts]
            scans = asyncio.create_task(scan_all(scanner, spools, at_once=40))
            await asyncio.sleep(0.05)
            assert await asyncio.to_thread(clamd.ask, b"RELOAD") == b"RELOADING\0"
            return await scans

    with Clamd() as clamd:
        assert uvloop.run(main(clamd)) == [Clean(), Infected(EICAR_NAME)] * 300
        assert "Reading databases" in clamd.log.read_text()


#: A text that this signature takes clamd long to look at: doubled by each further x.
SLOW = ("slow.ldb", "Slow;Engine:81-255,Target:0;0&1;736c6f77736c6f77;0/(x+x+)+y/\n")


def slow(number: int, length: int = 26) -> bytes:
    return b"slowslow" + b"x" * length + b"zy%d" % number


def test_a_scan_that_takes_longer_than_clamd_waits_for_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clamsmtpd.clamd.session.PING_INTERVAL", 1)
    settings = ("ReadTimeout 2", "PCREMatchLimit 4000000000", "PCRERecMatchLimit 1000000")

    async def main(clamd: Clamd) -> tuple[list[Verdict], float]:
        with contextlib.ExitStack() as stack:
            scanner = stack.enter_context(contextlib.closing(Scanner(clamd.unix, time_out=50)))
            spools = [stack.enter_context(message(tmp_path, slow(0, 26)))]
            # Replies come all the time; they do not count.
            spools += [stack.enter_context(message(tmp_path, slow(number, 19), EICAR)) for number in range(1, 60)]
            began = time.monotonic()
            scans = [asyncio.create_task(judge(scanner, spool)) for spool in spools]
            await asyncio.sleep(0.02)
            (session,) = scanner._sessions
            verdicts = [await scan for scan in scans]
            assert scanner._sessions == {session}, "it was not ended"
            return verdicts, time.monotonic() - began

    with Clamd(*settings, database=dict([SLOW])) as clamd:
        verdicts, seconds = uvloop.run(main(clamd))
    assert verdicts == [Clean(), *[Infected(EICAR_NAME)] * 59]
    assert seconds > 3, "or it was not long enough to say anything"


@pytest.mark.parametrize("text", [(), (EICAR, b"\r\n")], ids=["clean", "infected"])
def test_over_tcp_only_the_scan_remains_at_the_final_dot(clamd: Clamd, tmp_path: Path, text: tuple[bytes, ...]) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            scanner = stack.enter_context(contextlib.closing(Scanner(clamd.tcp, time_out=30)))
            spool = stack.enter_context(contextlib.closing(Spool(str(tmp_path), "clamsmtpd-10002A")))
            early = scanner.begin(spool)
            assert early is not None
            for at in range(0, 5_000_000, 50_000):
                spool.append((b"%050d" % at).ljust(49_998, b"z") + b"\r\n")
                await asyncio.sleep(0.001)
            for piece in text:
                spool.append(piece)
            await asyncio.sleep(0.05)
            assert early._follower.left < 65536, "of the text, clamd has all but the end"
            spool.seal(stuffed=False)
            # Nothing of it is read any more, from its beginning at least.
            stack.enter_context(pytest.MonkeyPatch.context()).setattr(Spool, "pieces", None)
            verdict = await judge(scanner, spool, early)
            assert verdict == (Infected(EICAR_NAME) if text else Clean())

    uvloop.run(main())


def test_too_large_while_it_comes_in(strict: Clamd, tmp_path: Path) -> None:
    reason = 'it answered "INSTREAM size limit exceeded. ERROR": the message is larger than StreamMaxLength'

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            scanner = stack.enter_context(contextlib.closing(Scanner(strict.tcp, time_out=30)))
            spool = stack.enter_context(contextlib.closing(Spool(str(tmp_path), "clamsmtpd-10002A")))
            early = scanner.begin(spool)
            for _ in range(40):
                spool.append(b"z" * 50_000)
                await asyncio.sleep(0.001)
            spool.seal(stuffed=False)
            assert await judge(scanner, spool, early) == Oversize(f"{reason} in clamd.conf")

    uvloop.run(main())


def test_a_client_that_is_slower_than_clamd_waits(strict: Clamd, tmp_path: Path) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            scanner = stack.enter_context(contextlib.closing(Scanner(strict.tcp, time_out=30)))
            spool = stack.enter_context(contextlib.closing(Spool(str(tmp_path), "clamsmtpd-10002A")))
            early = scanner.begin(spool)
            spool.append(b"z" * 100_000)
            await asyncio.sleep(3)
            assert not scanner._sessions, "clamd has given it up"
            spool.append(EICAR)
            spool.seal(stuffed=False)
            assert await judge(scanner, spool, early) == Infected(EICAR_NAME)

    uvloop.run(main())


def test_a_clamd_that_was_stopped(tmp_path: Path) -> None:
    with Clamd() as clamd:
        unix, tcp = clamd.unix, clamd.tcp
        with message(tmp_path, HARMLESS) as spool:
            assert scan(unix, spool) == Clean()
    with message(tmp_path, HARMLESS) as spool:
        assert isinstance(scan(unix, spool), Unscanned)
        assert scan(tcp, spool) == Unscanned(f"clamd at {tcp}: Connection refused")
        assert scan(UnixAddress(str(tmp_path)), spool) == Unscanned(f"clamd at {tmp_path}: Connection refused")
