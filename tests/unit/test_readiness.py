"""When all that mail needs can be used."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clamsmtpd import readiness
from clamsmtpd.readiness import READY, WAITS_FOR_NEXT_HOP, WAITS_FOR_SCANNER, become_ready
from clamsmtpd.values import NextHop, TcpAddress, UnixAddress
from tests.support.world import Hop, run


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(readiness, "LONGEST_PAUSE", 0.1)


async def usable() -> None:
    """Be a scanner that has always been there."""


async def ready(hop: NextHop | None, *, within: float = 5) -> list[int]:
    steps: list[int] = []
    async with asyncio.timeout(within):
        await become_ready(usable, hop, steps.append)
    return steps


def test_the_next_hop_is_greeted_and_left() -> None:
    async def main() -> None:
        hop = Hop()
        async with await asyncio.start_server(hop.serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            steps = await ready(NextHop(TcpAddress("localhost", port)))
        assert steps == [WAITS_FOR_SCANNER, WAITS_FOR_NEXT_HOP, READY]
        assert hop.heard == [b"EHLO clamsmtpd.localdomain\r\n", b"QUIT\r\n"]

    run(main())


def test_one_that_knows_helo_alone(caplog: pytest.LogCaptureFixture) -> None:
    # Clients fall back to HELO, and have their mail delivered (RFC 5321 section 4.1.1.1).
    async def main() -> None:
        hop = Hop(replies={"EHLO": b"502 not here\r\n"})
        async with await asyncio.start_server(hop.serve, "127.0.0.1", 0) as server:
            await ready(NextHop(TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])))
        assert hop.verbs == ["EHLO", "HELO", "QUIT"]
        assert caplog.messages == []

    run(main())


def test_an_lmtp_next_hop_at_a_unix_socket(tmp_path: Path) -> None:
    async def main() -> None:
        hop = Hop()
        path = str(tmp_path / "socket")
        async with await asyncio.start_unix_server(hop.serve, path):
            await ready(NextHop(UnixAddress(path), lmtp=True))
        assert hop.verbs == ["LHLO", "QUIT"]

    run(main())


def test_the_scanner_comes_first() -> None:
    async def main() -> None:
        there = asyncio.Event()
        steps: list[int] = []

        async def scanner() -> None:
            await there.wait()

        task = asyncio.ensure_future(become_ready(scanner, None, steps.append))
        await asyncio.sleep(0.05)
        assert steps == [WAITS_FOR_SCANNER]
        there.set()
        await task
        assert steps == [WAITS_FOR_SCANNER, READY]

    run(main())


def test_a_next_hop_at_the_clients_own_address_is_not_asked() -> None:
    assert run(ready(NextHop(TcpAddress(None, 25)))) == [WAITS_FOR_SCANNER, READY]


@pytest.mark.parametrize(
    ("greeting", "ehlo", "trouble"),
    [
        (b"421 not now\r\n", b"250 ok\r\n", "greets with 421 not now"),
        (b"220-two\r\n220 lines\r\n", b"550 no\r\n", "answers EHLO with 550 no"),
        (b"PONG\n", b"250 ok\r\n", "greets with PONG"),
        (b"220 ok\r\n", b"251 ok\r\n", "answers EHLO with 251 ok"),
    ],
)
def test_one_that_would_not_take_mail_is_told_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, greeting: bytes, ehlo: bytes, trouble: str
) -> None:
    async def main() -> None:
        hop = Hop(greeting=greeting, replies={"EHLO": ehlo})
        async with await asyncio.start_server(hop.serve, "127.0.0.1", 0) as server:
            address = TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])
            task = asyncio.ensure_future(ready(NextHop(address)))
            await asyncio.sleep(0.4)
            assert hop.connections >= 3
            assert not task.done()
            hop.greeting, hop.replies = b"220 ok\r\n", {}
            assert (await task)[-1] == READY
        assert caplog.messages == [f"not ready: next hop {address}: {trouble}"]

    run(main())


def test_one_that_hangs_up(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            with pytest.raises(TimeoutError):
                await ready(NextHop(TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])), within=0.2)
        assert caplog.messages[0].endswith("greets with nothing, and hangs up")

    run(main())


def test_one_that_says_nothing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "TRY_LIMIT", 0.05)

    async def main() -> None:
        hop = Hop(greeting=None)
        async with await asyncio.start_server(hop.serve, "127.0.0.1", 0) as server:
            with pytest.raises(TimeoutError):
                await ready(NextHop(TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])), within=0.2)
            # Each try is over before the next.
            await asyncio.sleep(0.05)
            assert hop.connections > 1
            assert hop.open == 0
        assert caplog.messages[0].endswith(": no answer in time")

    run(main())


@pytest.mark.parametrize("host", ["name.invalid", "x" * 64 + ".example"])
def test_a_name_that_nobody_knows(caplog: pytest.LogCaptureFixture, host: str) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await ready(NextHop(TcpAddress(host, 25)), within=1)
        assert len(caplog.messages) == 1

    run(main())
