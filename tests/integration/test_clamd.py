"""Scans by the real clamd, over both kinds of socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from clamsmtpd.clamd.client import Scanner
from clamsmtpd.clamd.protocol import Replies
from clamsmtpd.spool import Spool
from clamsmtpd.values import Address, Clean, Infected, UnixAddress, Unscanned, Verdict
from tests.support.clamd import EICAR, EICAR_NAME, Clamd

pytestmark = pytest.mark.integration

STREAM_MAX = 1_000_000
KINDS = ("unix", "tcp")


@pytest.fixture(scope="module")
def strict() -> Iterator[Clamd]:
    """A clamd with little patience."""
    settings = (f"StreamMaxLength {STREAM_MAX}", "CommandReadTimeout 1", "MaxQueue 4", "MaxThreads 2")
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
            return await scanner.scan(spool)

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
        assert b"".join(spool.wire(0, b"")) == padding + b"..\r\n" + EICAR + b"\r\n"


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
            return await asyncio.gather(*map(scanner.scan, spools))

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
            assert verdict == Unscanned(f"clamd at {strict.tcp}: {reason} in clamd.conf")


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
            return await asyncio.gather(*map(scanner.scan, spools))

    assert set(uvloop.run(main())) == {Infected(EICAR_NAME)}


def test_a_clamd_that_was_stopped(tmp_path: Path) -> None:
    with Clamd() as clamd:
        unix, tcp = clamd.unix, clamd.tcp
        with message(tmp_path, HARMLESS) as spool:
            assert scan(unix, spool) == Clean()
    with message(tmp_path, HARMLESS) as spool:
        assert isinstance(scan(unix, spool), Unscanned)
        assert scan(tcp, spool) == Unscanned(f"clamd at {tcp}: Connection refused")
        assert scan(UnixAddress(str(tmp_path)), spool) == Unscanned(f"clamd at {tmp_path}: Connection refused")
