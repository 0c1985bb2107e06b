"""Sessions over real sockets, with a next hop and a clamd that misbehave as told."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clamsmtpd import session
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.commons import Commons
from clamsmtpd.config import load
from clamsmtpd.ledger import Ledger
from clamsmtpd.listeners import Listener, listen
from clamsmtpd.logjson import fields_of
from clamsmtpd.metrics import OUTCOMES, VERDICTS
from clamsmtpd.policy import Policy
from clamsmtpd.poller import Poller
from clamsmtpd.server import Server
from clamsmtpd.spool import Spool
from clamsmtpd.values import Decision, Listen, TcpAddress
from tests.support.loops import until
from tests.support.world import Clamd, Client, Hop, run, world

INFECTED = b"fd[1]: Eicar-Test FOUND\0"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_clean_message_goes_through_and_gets_the_field(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            assert await client.message() == b"250 queued\r\n"
            assert await client.ask(b"QUIT") == b"221 bye\r\n"
            assert await client.rest() == b""
            assert here.hop.texts == [b"Subject: x\r\nX-Virus-Scanned: ClamAV using ClamSMTP\r\n\r\ntext\r\n"]
            assert here.hop.verbs == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]

    run(main())


def test_a_virus_is_dropped_kept_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="clamsmtpd")
    seen = tmp_path / "seen"

    async def main() -> None:
        hook = f"VirusAction: env > {seen}.new; mv {seen}.new {seen}"
        async with world(tmp_path, "Quarantine: on", hook, clamd=Clamd(INFECTED)) as here:
            client = await here.client()
            await client.envelope()
            assert (
                await client.message(b"Subject: x\r\n\r\n..bad\r\n") == b"250 2.0.0 Virus found; message discarded\r\n"
            )
            assert await client.ask(b"NOOP") == b"250 ok\r\n"
            (kept,) = here.folder.glob("virus.*")
            assert kept.read_bytes() == b"Subject: x\r\n\r\n.bad\r\n"
            assert kept.stat().st_mode & 0o777 == 0o600
            await until(seen.exists)
            variables = dict(line.split("=", 1) for line in seen.read_text().splitlines())
            assert variables.pop("PWD", "")
            assert variables == {
                "ATTACHMENT": "part 1 (text/plain)",
                "CLIENT": "127.0.0.1",
                "SERVER": "127.0.0.1",
                "SENDER": "a@example.org",
                "RECIPIENTS": "b@example.org",
                "EMAIL": str(kept),
                "SHA256": hashlib.sha256(b".bad\r\n").hexdigest(),
                "TMPDIR": str(here.folder),
                "VIRUS": "Eicar-Test",
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            } | ({"_": variables["_"]} if "_" in variables else {})
            assert here.hop.verbs == ["EHLO", "MAIL", "RCPT", "RSET", "NOOP"]

    run(main())
    lines = [record.getMessage() for record in caplog.records]
    assert "100000: accepted connection from: 127.0.0.1" in lines
    assert "100000: from=a@example.org, to=b@example.org, status=VIRUS:Eicar-Test" in lines


def test_a_virus_passed_on_is_marked(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "Action: pass", clamd=Clamd(INFECTED)) as here:
            client = await here.client()
            await client.envelope()
            assert await client.message() == b"250 queued\r\n"
            assert here.hop.texts == [b"Subject: x\r\nX-Virus-Infected: Eicar-Test\r\n\r\ntext\r\n"]

    run(main())


def test_a_virus_that_cannot_be_kept_is_not_dropped(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "Quarantine: on", clamd=Clamd(INFECTED)) as here:
            here.folder.rename(tmp_path / "gone")
            client = await here.client()
            await client.envelope()
            assert (await client.message()).startswith(b"451 ")

    run(main())


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"fd[1]: OK",
        b"OK\0",
        b"fd[1]: ok\0",
        b"fd[1]: OK\0fd[2]: OK\0",
        b"fd[1]: (null) FOUND\0",
        b"COMMAND READ TIMED OUT\n",
        b"fd[1]: Can't allocate memory ERROR\0",
        b"220 I am an SMTP server\r\n",
    ],
)
def test_a_strange_answer_of_clamd_is_451(tmp_path: Path, reply: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="clamsmtpd")

    async def main() -> None:
        async with world(tmp_path, clamd=Clamd(reply)) as here:
            client = await here.client()
            await client.envelope()
            assert (await client.message()).startswith(b"451 4.3.0 ")
            assert await client.ask(b"NOOP") == b"250 ok\r\n"
            assert here.hop.texts == []

    run(main())
    assert any(record.getMessage().endswith("status=CLAMAV-ERROR") for record in caplog.records)


def test_a_message_that_cannot_be_stored_is_451_wherever_in_it_that_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_spool: Spool, data: bytes) -> None:
        if b"last" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Spool, "append", full)

    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            # Text and final dot in one segment: nothing comes behind the failure.
            assert (await client.message(b"last\r\n")).startswith(b"451 4.3.1 ")
            assert await client.ask(b"NOOP") == b"250 ok\r\n"
            assert here.hop.texts == []

    run(main())


def test_a_chunk_that_cannot_be_stored_is_never_answered_by_the_250_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_spool: Spool, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Spool, "append", full)

    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            client.send(b"BDAT 7\r\nfirst\r\nBDAT 6 LAST\r\nlast\r\n")
            # The reply that counts is the second, however early the failure was noticed.
            assert (await client.reply()).startswith(b"250 ")
            assert (await client.reply()).startswith(b"451 4.3.1 ")
            assert await client.ask(b"NOOP") == b"250 ok\r\n"
            assert here.hop.texts == []

    run(main())


def test_no_clamd_at_all_is_451(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world(tmp_path, clam=lambda path: path + ".gone") as here:
            client = await here.client()
            await client.envelope()
            assert (await client.message()).startswith(b"451 ")

    run(main())
    assert any("clamd.sock.gone: No such file" in record.getMessage() for record in caplog.records)


def test_a_clamd_that_stays_silent_is_451_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "TimeOut: 1", clamd=Clamd(None)) as here:
            client = await here.client()
            await client.envelope()
            begin = time.monotonic()
            assert (await client.message()).startswith(b"451 ")
            assert 0.9 < time.monotonic() - begin < 3

    run(main())


def test_no_next_hop_is_421(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        async with world(tmp_path, out=f"127.0.0.1:{port}") as here:
            client = await here.client()
            assert (await client.rest()).startswith(b"421 4.4.1 ")

    run(main())


def test_a_host_name_that_does_not_resolve_is_421(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, out="no-such-host.invalid:25") as here:
            client = await here.client()
            assert (await client.rest()).startswith(b"421 4.4.1 ")

    run(main())


def test_a_next_hop_behind_a_unix_socket(tmp_path: Path) -> None:
    async def main() -> None:
        hop = Hop()
        path = str(tmp_path / "hop.sock")
        hop_server = await asyncio.start_unix_server(hop.serve, path)
        async with world(tmp_path, out=path) as here:
            client = await here.client()
            await client.envelope()
            assert await client.message() == b"250 queued\r\n"
        hop_server.close()

    run(main())


def test_unix_sockets_on_both_sides_are_no_loop(tmp_path: Path) -> None:
    config = tmp_path / "unix.conf"
    config.write_text(f"Listen: {tmp_path}/in\nOutAddress: {tmp_path}/out\n")

    async def main() -> None:
        hop = Hop()
        hop_server = await asyncio.start_unix_server(hop.serve, str(tmp_path / "out"))
        settings = load(str(config)).settings
        stop = asyncio.Event()
        served = asyncio.ensure_future(Server(settings, listen(settings.listen)).serve(stop))
        await asyncio.sleep(0)
        clients = [Client(*await asyncio.open_unix_connection(str(tmp_path / "in"))) for _ in range(3)]
        for client in clients:
            assert (await client.reply()).startswith(b"220 ")
        for client in clients:
            client.close()
            await client.writer.wait_closed()
        stop.set()
        await served
        hop_server.close()
        await asyncio.sleep(0.02)

    run(main())


def test_a_port_alone_leads_back_to_the_client(tmp_path: Path) -> None:
    async def main() -> None:
        hop = Hop()
        hop_server = await asyncio.start_server(hop.serve, "127.0.0.3", 0)
        async with world(tmp_path, out=str(hop_server.sockets[0].getsockname()[1])) as here:
            client = await here.client("127.0.0.3")
            await client.envelope()
            assert await client.message() == b"250 queued\r\n"
        hop_server.close()

    run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "localhost"])
def test_a_loop_is_noticed_and_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str) -> None:
    config = tmp_path / "loop.conf"

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config.write_text(f"OutAddress: {host}:{port}\n")
        stop = asyncio.Event()
        served = asyncio.ensure_future(
            Server(load(str(config)).settings, [Listener(listener, Listen(TcpAddress(None, 25)))]).serve(stop)
        )
        await asyncio.sleep(0)
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        assert (await client.rest()).startswith(b"421 4.4.6 ")
        client.close()
        stop.set()
        await served

    run(main())
    assert sum("would loop" in record.getMessage() for record in caplog.records) == 1


def test_a_connection_that_was_not_redirected_cannot_be_proxied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "transparent.conf"
    config.write_text("TransparentProxy: on\n")

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        stop = asyncio.Event()
        served = asyncio.ensure_future(
            Server(load(str(config)).settings, [Listener(listener, Listen(TcpAddress(None, 25)))]).serve(stop)
        )
        await asyncio.sleep(0)
        client = Client(*await asyncio.open_connection("127.0.0.1", listener.getsockname()[1]))
        assert (await client.rest()).startswith(b"421 4.4.6 ")
        client.close()
        stop.set()
        await served

    run(main())
    assert "made straight to us" in caplog.text


# ---- bytes ----------------------------------------------------------------------------------------


BODIES = [
    b"\r\n",
    b"no header at all\r\n",
    b"Subject: only a header\r\n",
    b"..\r\n...\r\n..x\r\n",
    bytes(octet for octet in range(256) if octet not in (10, 13)) + b"\r\n",
    b"a\rb\nc\0d\r\n",
    b"x" * 4000 + b"\r\n" + b"y" * 100_000 + b"\r\n",
    b"Subject: large\r\n\r\n" + b"z" * 70 + b"\r\n" + b"0123456789" * 50_000 + b"\r\n",
]


@pytest.mark.parametrize("text", BODIES)
@pytest.mark.parametrize("step", [1 << 20, 1371, 1])
def test_the_next_hop_gets_what_the_client_sent(tmp_path: Path, text: bytes, step: int) -> None:
    if step == 1 and len(text) > 5000:
        text = text[:2000] + b"\r\n"

    async def main() -> None:
        async with world(tmp_path, "Header:") as here:
            client = await here.client()
            await client.envelope()
            await client.ask(b"DATA")
            wire = text + b".\r\n"
            for at in range(0, len(wire), step):
                client.send(wire[at : at + step])
                await client.writer.drain()
            assert await client.reply() == b"250 queued\r\n"
            assert here.hop.texts == [text]

    run(main())


def test_the_empty_message(tmp_path: Path) -> None:
    class Plain(Hop):
        """readuntil() cannot see that the CRLF of DATA begins the final dot."""

        async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hop\r\n")
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(b"354 go\r\n" if line == b"DATA\r\n" else b"250 ok\r\n")

    async def main() -> None:
        async with world(tmp_path, hop=Plain()) as here:
            client = await here.client()
            await client.envelope()
            await client.ask(b"DATA")
            client.send(b".\r\n")
            # This hop says 250 to each line, the field and the dot: the first is no reply to the message.
            assert (await client.reply()).startswith((b"250 ok", b"451 "))
            field = b"X-Virus-Scanned: ClamAV using ClamSMTP\r\n"
            await until(lambda: b".\r\n" in here.hop.heard)
            assert here.hop.heard[here.hop.heard.index(b"DATA\r\n") + 1 :][:2] == [field, b".\r\n"]

    run(main())


# ---- time -----------------------------------------------------------------------------------------


def test_a_client_that_dribbles_a_command_is_told_421(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "TimeOut: 1") as here:
            client = await here.client()
            await client.reply()
            begin = time.monotonic()
            while time.monotonic() - begin < 4 and not client.reader.at_eof():
                client.send(b"N")
                await asyncio.sleep(0.1)
                if client.reader._buffer:  # type: ignore[attr-defined]
                    break
            assert (await client.reply()).startswith(b"421 4.4.2 ")
            assert time.monotonic() - begin < 3

    run(main())


def test_a_client_that_dribbles_a_message_is_told_421(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "TimeOut: 1") as here:
            client = await here.client()
            await client.envelope()
            await client.ask(b"DATA")
            begin = time.monotonic()
            while time.monotonic() - begin < 4 and not client.reader._buffer:  # type: ignore[attr-defined]
                client.send(b"x")
                await asyncio.sleep(0.05)
            assert (await client.reply()).startswith(b"421 4.4.2 ")
            await until(lambda: here.hop.open == 0)

    run(main())


def test_a_slow_but_steady_client_is_not_cut(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "TimeOut: 1") as here:
            client = await here.client()
            await client.envelope()
            await client.ask(b"DATA")
            for _ in range(25):
                client.send(b"x" * 30 + b"\r\n")
                await asyncio.sleep(0.1)
            client.send(b".\r\n")
            assert await client.reply() == b"250 queued\r\n"

    run(main())


@pytest.mark.parametrize("verb", ["EHLO", "DATA"])
def test_a_next_hop_that_falls_silent_is_given_up(tmp_path: Path, verb: str) -> None:
    async def main() -> None:
        async with world(tmp_path, "TimeOut: 1", hop=Hop({verb: None})) as here:
            client = await here.client()
            await client.reply()
            client.send(b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n")
            said = await client.rest()
            assert said.endswith(b"421 4.4.2 Connection to the next hop was lost; try again later\r\n")
            if verb == "DATA":
                assert b"\r\n451 4.4.2 " in said

    run(main())


def test_a_next_hop_that_never_greets_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        hop = Hop(greeting=None)
        async with world(tmp_path, "TimeOut: 1", hop=hop) as here:
            client = await here.client()
            assert (await client.rest()).startswith(b"421 4.4.1 ")

    run(main())


def test_a_next_hop_that_does_not_take_the_text_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        hop = Hop()
        hop.reads.clear()
        async with world(tmp_path, "TimeOut: 1", hop=hop) as here:
            client = await here.client()
            await client.envelope()
            # More than all the buffers between us hold.
            answer = await client.message((b"x" * 998 + b"\r\n") * 30_000)
            assert answer.startswith(b"451 ")

    run(main())


def test_keep_alives_while_the_message_is_judged(tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Clamd()
        clamd.answers.clear()
        async with world(tmp_path, "KeepAlives: 1", clamd=clamd) as here:
            client = await here.client()
            await client.envelope()
            await client.ask(b"DATA")
            client.send(b"x\r\n.\r\n")
            await until(lambda: here.hop.verbs.count("NOOP") == 2)
            clamd.answers.set()
            assert await client.reply() == b"250 queued\r\n"

    run(main())


# ---- endings --------------------------------------------------------------------------------------


def test_a_client_that_resets_takes_everything_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Clamd()
        clamd.answers.clear()
        async with world(tmp_path, clamd=clamd) as here:
            client = await here.client()
            await client.envelope()
            await client.ask(b"DATA")
            client.send(b"x\r\n.\r\n")
            await until(lambda: clamd.requests == 1)
            raw = client.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()
            await until(lambda: here.hop.open == 0)
            clamd.answers.set()
            assert here.hop.texts == []

    run(main())


def test_a_client_that_half_closes_after_quit_gets_all_answers(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            client.send(b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n")
            client.writer.write_eof()
            said = await client.rest()
            assert said.endswith(b"250 queued\r\n221 bye\r\n")
            assert len(here.hop.texts) == 1

    run(main())


def test_stopping_tells_the_idle_421_and_finishes_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Clamd()
        clamd.answers.clear()
        async with world(tmp_path, clamd=clamd) as here:
            idle, busy = await here.client(), await here.client()
            await idle.reply()
            await busy.envelope()
            await busy.ask(b"DATA")
            busy.send(b"x\r\n.\r\n")
            await until(lambda: clamd.requests == 1)
            here.stop.set()
            assert (await idle.rest()).startswith(b"421 4.3.2 ")
            with pytest.raises(ConnectionRefusedError):
                await here.client()
            clamd.answers.set()
            assert (await busy.rest()).startswith(b"250 queued\r\n421 4.3.2 ")
            assert len(here.hop.texts) == 1

    run(main())


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            before = descriptors()
            for text in (b"x\r\n", b"y" * 300_000 + b"\r\n", b"..z\r\n"):
                client = await here.client()
                await client.envelope()
                await client.message(text)
                await client.ask(b"QUIT")
                client.close()
            await until(lambda: descriptors() <= before)
            assert list(here.folder.iterdir()) == []

    run(main())


def test_the_socket_to_the_next_hop_and_the_client_do_not_wait_for_acks(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.reply()
            (session,) = here.server._sessions
            for transport in (session._client, session._server):
                assert transport is not None
                sock = transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main())


def test_passwords_are_not_in_the_debug_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="clamsmtpd")

    async def main() -> None:
        async with world(tmp_path, hop=Hop({"AUTH": b"334 VXNlcm5hbWU6\r\n"})) as here:
            client = await here.client()
            await client.reply()
            await client.ask(b"AUTH LOGIN")
            await client.ask(b"c2VjcmV0")
            await client.ask(b"AUTH PLAIN c2VjcmV0")
            assert b"c2VjcmV0\r\n" in here.hop.heard

    run(main())
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "CLIENT < (authentication)" in text
    assert "SERVER > (authentication)" in text
    assert "c2VjcmV0" not in text


def test_a_fault_of_ours_delivers_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Decision:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Policy, "decide", broken)

    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            assert (await client.message()).startswith(b"451 ")
            assert here.hop.texts == []

    run(main())
    assert any("internal error: RuntimeError: a bug" in record.getMessage() for record in caplog.records)


# ---- verdicts that nobody waits for ---------------------------------------------------------------


def said_of(identity: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the names of what the log says of a message or, between messages, of a connection."""
    told = [fields_of(record) for record in caplog.records]
    return [event for event, fields in told if identity == fields.get("message", fields.get("connection"))]


def test_a_verdict_that_comes_after_the_client_has_left_is_there_for_its_next_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="clamsmtpd")
    monkeypatch.setattr(Pool, "version", "ClamAV 1.4.3/27000")

    async def main() -> None:
        clamd = Clamd(INFECTED)
        clamd.answers.clear()
        async with world(tmp_path, "Action: bounce", "Quarantine: on", clamd=clamd) as here:
            client = await here.client()
            await client.envelope()
            await client.ask(b"DATA")
            client.send(b"x\r\n.\r\n")
            await until(lambda: clamd.requests == 1)
            client.close()
            await until(lambda: here.hop.open == 0)
            assert list(here.folder.glob("*.*")) == []
            clamd.answers.set()
            await until(lambda: "the verdict came after the client had left: Eicar-Test" in caplog.text)
            assert said_of("100000-1", caplog) == ["connection.client_left", "message.late_verdict"]
            # Of a message that is still to come there is nothing to be counted or kept.
            assert "status=" not in caplog.text
            assert list(here.folder.glob("*.*")) == []
            client = await here.client()
            await client.envelope()
            asked = clamd.requests
            assert (await client.message(b"x\r\n")).startswith(b"550 ")
            assert clamd.requests == asked
            assert len(list(here.folder.glob("virus.*"))) == 1

    before = descriptors()
    run(main())
    assert descriptors() == before


def test_a_client_that_tries_again_meanwhile_waits_for_the_same_scan(tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Clamd()
        clamd.answers.clear()
        async with world(tmp_path, clamd=clamd) as here:
            client = await here.client()
            for _ in range(4):
                client.close()
                client = await here.client()
                await client.envelope()
                await client.ask(b"DATA")
                client.send(b"x\r\n.\r\n")
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
            assert clamd.requests == 1
            clamd.answers.set()
            assert await client.reply() == b"250 queued\r\n"
            assert len(here.hop.texts) == 1

    before = descriptors()
    run(main())
    assert descriptors() == before


def test_a_stop_does_not_wait_for_verdicts_that_nobody_waits_for(tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Clamd()
        clamd.answers.clear()
        async with world(tmp_path, clamd=clamd) as here:
            client = await here.client()
            await client.envelope()
            await client.ask(b"DATA")
            client.send(b"x\r\n.\r\n")
            await until(lambda: clamd.requests == 1)
            client.close()
            await until(lambda: here.hop.open == 0)
            here.stop.set()
            await asyncio.wait_for(asyncio.shield(here.served), 2)

    run(main())


# ---- no hope of a verdict -------------------------------------------------------------------------


def test_a_message_is_refused_before_its_text_when_no_verdict_could_come_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hopeless = True
    monkeypatch.setattr(Pool, "admits", lambda _pool: not hopeless)

    async def main() -> None:
        nonlocal hopeless
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            assert await client.ask(b"DATA") == b"451 4.3.2 Virus scan not possible in time now; try again later\r\n"
            assert here.hop.verbs[-1] == "RCPT"
            # The text of that line names no connection.
            assert said_of("100000", caplog) == ["message.turned_away"]
            hopeless = False
            for line in (b"RSET", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>"):
                await client.ask(line)
            assert await client.message() == b"250 queued\r\n"

    run(main())


def test_a_message_that_may_pass_unscanned_is_never_refused_before_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "admits", lambda _pool: False)

    async def main() -> None:
        async with world(tmp_path, "ScanFailure: pass") as here:
            client = await here.client()
            await client.envelope()
            assert await client.message() == b"250 queued\r\n"

    run(main())


# ---- a message that takes its time ----------------------------------------------------------------


@pytest.mark.parametrize(("setting", "noops"), [("KeepAlives: automatic", True), ("KeepAlives: 0", False)])
def test_the_next_hop_is_kept_awake_by_itself_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, *, noops: bool
) -> None:
    monkeypatch.setattr(session, "AUTOMATIC_KEEP_ALIVE", 0.2)

    async def main() -> None:
        clamd = Clamd()
        clamd.answers.clear()
        async with world(tmp_path, setting, "TimeOut: 1", clamd=clamd) as here:
            client = await here.client()
            await client.envelope()
            await client.ask(b"DATA")
            client.send(b"x\r\n.\r\n")
            await asyncio.sleep(0.8)
            assert ("NOOP" in here.hop.verbs) is noops
            clamd.answers.set()
            assert await client.reply() == b"250 queued\r\n"

    run(main())


# ---- no more descriptors can be watched -----------------------------------------------------------


def test_a_client_that_cannot_be_watched_is_told_421_and_leaves_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(tmp_path, "MaxConnections: 1") as here:
            with monkeypatch.context() as patch:
                patch.setattr(Poller, "watch", raises_no_space)
                client = await here.client()
                assert (await client.rest()).startswith(b"421 ")
            client = await here.client()
            await client.envelope()
            assert await client.message() == b"250 queued\r\n"

    # The first loop of a process opens what it keeps.
    run(main())
    before = descriptors()
    run(main())
    assert descriptors() == before


def test_a_next_hop_that_cannot_be_watched_is_one_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Poller.watch

    async def main() -> None:
        async with world(tmp_path, "MaxConnections: 1") as here:
            with monkeypatch.context() as patch:
                first = iter([True])

                def watch_one(poller: Poller, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
                    (watch if next(first, False) else raises_no_space)(poller, descriptor, events, handler)

                patch.setattr(Poller, "watch", watch_one)
                client = await here.client()
                assert (await client.rest()).startswith(b"421 ")
                client.close()
                await until(lambda: not here.server._sessions)
            client = await here.client()
            await client.envelope()
            assert await client.message() == b"250 queued\r\n"

    # The first loop of a process opens what it keeps.
    run(main())
    before = descriptors()
    run(main())
    assert descriptors() == before


def raises_no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_message_given_up_between_its_chunks_has_ended_there(tmp_path: Path) -> None:
    async def main() -> None:
        share = Commons(1, 10, seen=True).share(0)
        async with world(tmp_path, share=share) as here:
            client = await here.client()
            await client.envelope()
            assert (await client.ask(b"BDAT 5\r\nabc")).startswith(b"250 ")
            assert share.metrics.messages(VERDICTS.index("none"), OUTCOMES.index("abandoned")) == 0
            assert await client.ask(b"RSET") == b"250 ok\r\n"
            assert share.metrics.messages(VERDICTS.index("none"), OUTCOMES.index("abandoned")) == 1
            (session,) = here.server._sessions
            assert session.tag.message == ""
        assert share.metrics.messages(VERDICTS.index("none"), OUTCOMES.index("abandoned")) == 1

    run(main())


def test_an_account_that_cannot_be_closed_costs_no_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Ledger, "close", fail)

    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            assert await client.message() == b"250 queued\r\n"
            assert await client.ask(b"QUIT") == b"221 bye\r\n"

    run(main())
