"""Sessions over real sockets: TLS on both sides, PROXY protocol, XCLIENT, LMTP, SIZE."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from clamsmtpd.inspection import Inspector
from clamsmtpd.tls import Certificate
from tests.support.world import Client, Hop, World, run, world

EHLO = b"EHLO client.example"


@dataclass(frozen=True)
class Pki:
    """An authority, and files of a certificate for 127.0.0.1 in a folder."""

    authority: trustme.CA
    folder: Path

    def issue(self, *names: str) -> None:
        issued = self.authority.issue_cert(*names)
        issued.private_key_pem.write_to_path(self.folder / "key.pem")
        (self.folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    @property
    def settings(self) -> tuple[str, str]:
        return f"TLSCertificate: {self.folder}/cert.pem", f"TLSKey: {self.folder}/key.pem"

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        return context


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    made = Pki(trustme.CA(), tmp_path)
    made.issue("127.0.0.1")
    return made


async def start_tls(client: Client, context: ssl.SSLContext, name: str = "127.0.0.1") -> None:
    assert (await client.ask(b"STARTTLS")).startswith(b"220 ")
    await client.writer.start_tls(context, server_hostname=name)


async def gone(here: World) -> None:
    """Wait until no session is left."""
    for _ in range(200):
        if not here.server._sessions:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a session is left")


# ---- TLS with the client --------------------------------------------------------------------------


def test_a_message_through_tls(tmp_path: Path, pki: Pki) -> None:
    async def main() -> None:
        async with world(tmp_path, *pki.settings) as here:
            client = await here.client()
            await client.reply()
            assert b"STARTTLS" in await client.ask(EHLO)
            await start_tls(client, pki.client())
            assert (await client.ask(b"MAIL FROM:<a@example.org>")).startswith(b"503 ")
            assert b"STARTTLS" not in await client.ask(EHLO)
            for line in (b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>"):
                assert (await client.ask(line)).startswith(b"250 ")
            text = b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n"
            text += (b"y" * 100 + b"\r\n") * 20000
            assert await client.message(text) == b"250 queued\r\n"
            assert here.hop.texts[0].endswith(text[-1000:])
            assert (await client.ask(b"QUIT")).startswith(b"221 ")
            assert await client.rest() == b""
            await gone(here)

    run(main())


def test_plain_text_behind_starttls_is_no_command(tmp_path: Path, pki: Pki) -> None:
    async def main() -> None:
        async with world(tmp_path, *pki.settings) as here:
            client = await here.client()
            await client.reply()
            await client.ask(EHLO)
            client.send(b"STARTTLS\r\nMAIL FROM:<injected@example.org>\r\n")
            assert (await client.reply()).startswith(b"220 ")
            await client.writer.start_tls(pki.client(), server_hostname="127.0.0.1")
            assert b"250" in await client.ask(EHLO)
            assert here.hop.verbs == ["EHLO", "EHLO"]

    run(main())


def test_plain_text_in_place_of_the_handshake(tmp_path: Path, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with world(tmp_path, *pki.settings) as here:
            client = await here.client()
            await client.reply()
            await client.ask(EHLO)
            assert (await client.ask(b"STARTTLS")).startswith(b"220 ")
            client.send(b"MAIL FROM:<injected@example.org>\r\n")
            assert b"250" not in await client.rest()
            await gone(here)
            assert here.hop.verbs == ["EHLO"]

    run(main())
    assert "TLS handshake with the client failed" in caplog.text


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x01"])
def test_a_client_that_leaves_in_its_handshake(tmp_path: Path, pki: Pki, says: bytes) -> None:
    async def main() -> None:
        async with world(tmp_path, *pki.settings) as here:
            client = await here.client()
            await client.reply()
            await client.ask(EHLO)
            await client.ask(b"STARTTLS")
            client.send(says)
            await asyncio.sleep(0.05)
            client.close()
            await gone(here)

    run(main())


def test_clients_that_break_off_at_any_moment_around_starttls(
    tmp_path: Path, pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    reset = struct.pack("ii", 1, 0)

    async def main() -> None:
        async with world(tmp_path, *pki.settings) as here:
            for number in range(60):
                client = await here.client()
                await client.reply()
                await client.ask(EHLO)
                client.send(b"STARTTLS\r\n" + (b"\x16\x03\x01\x02\x00" if number % 3 == 0 else b""))
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                if number % 2:
                    sock = client.writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                client.writer.transport.abort()
            await gone(here)
            gc.collect()

    run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_handshake_that_is_given_up_before_it_has_begun(tmp_path: Path, pki: Pki) -> None:
    async def main() -> None:
        async with world(tmp_path, *pki.settings) as here:
            client = await here.client()
            await client.reply()
            await client.ask(EHLO)
            (session,) = here.server._sessions
            # Both become known in the same turn of the loop: the next hop is lost, and the client wants TLS.
            assert session._server is not None
            session._server.abort()
            session.client_received(b"STARTTLS\r\n")
            del session
            assert (await client.rest()).startswith(b"220 ")
            await gone(here)
            # A socket that nobody has closed is an error here (ResourceWarning).
            gc.collect()

    run(main())


def test_no_certificate_in_the_moment_of_starttls_ends_the_session(
    tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_certificate: Certificate) -> ssl.SSLContext:
        raise MemoryError

    monkeypatch.setattr(Certificate, "context", fails)

    async def main() -> None:
        async with world(tmp_path, *pki.settings) as here:
            client = await here.client()
            await client.reply()
            await client.ask(EHLO)
            assert (await client.ask(b"STARTTLS")).startswith(b"220 ")
            assert await client.rest() == b""
            await gone(here)

    run(main())


def test_a_client_that_never_begins_its_handshake(tmp_path: Path, pki: Pki) -> None:
    async def main() -> None:
        async with world(tmp_path, *pki.settings, "TimeOut: 1") as here:
            client = await here.client()
            await client.reply()
            await client.ask(EHLO)
            await client.ask(b"STARTTLS")
            assert await client.rest() == b""
            await gone(here)

    run(main())


def test_draining_while_a_client_shakes_hands(tmp_path: Path, pki: Pki) -> None:
    async def main() -> None:
        async with world(tmp_path, *pki.settings) as here:
            client = await here.client()
            await client.reply()
            await client.ask(EHLO)
            await client.ask(b"STARTTLS")
            here.stop.set()
            await asyncio.sleep(0.05)
            await client.writer.start_tls(pki.client(), server_hostname="127.0.0.1")
            assert (await client.reply()).startswith(b"421 4.3.2 ")
            await asyncio.wait_for(here.served, 10)

    run(main())


def test_a_renewed_certificate_is_shown_to_the_next_client(tmp_path: Path, pki: Pki) -> None:
    async def main() -> None:
        async with world(tmp_path, *pki.settings) as here:
            for name in ("127.0.0.1", "new.example.org"):
                pki.issue(name)
                await asyncio.sleep(1.1)
                client = await here.client()
                await client.reply()
                await client.ask(EHLO)
                await start_tls(client, pki.client(), name)
                client.close()

    run(main())


# ---- TLS with the next hop ------------------------------------------------------------------------


class SecureHop(Hop):
    """A next hop that takes STARTTLS; what it hears through TLS is in ``secret``."""

    context: ssl.SSLContext | None = None
    secret: list[bytes]
    handshakes_fail = False

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.greeting or b"")
        while line := await reader.readline():
            self.heard.append(line)
            if line.startswith(b"STARTTLS") and self.context is not None:
                writer.write(b"220 go\r\n")
                if self.handshakes_fail:
                    await reader.read(1)
                    writer.write(b"what?\r\n")
                    await reader.read()
                    return
                await writer.start_tls(self.context)
                self.greeting = b""
                before = len(self.heard)
                await super()._talk(reader, writer)
                self.secret = self.heard[before:]
                return
            offer = b"250-hop\r\n250 STARTTLS\r\n" if self.context is not None else b"250 hop\r\n"
            writer.write(b"221 bye\r\n" if line.startswith(b"QUIT") else offer)


def secure_hop(context: ssl.SSLContext | None, **attributes: bool) -> SecureHop:
    hop = SecureHop()
    hop.context = context
    for name, value in attributes.items():
        setattr(hop, name, value)
    return hop


@pytest.mark.parametrize("level", ["may", "encrypt", "verify"])
def test_a_message_through_tls_to_the_next_hop(
    tmp_path: Path, pki: Pki, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pki.authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    async def main() -> None:
        async with world(tmp_path, f"OutTLS: {level}", hop=secure_hop(pki.server())) as here:
            client = await here.client()
            await client.envelope()
            assert await client.message(b"x\r\n" * 100_000) == b"250 queued\r\n"
            assert (await client.ask(b"QUIT")).startswith(b"221 ")
            assert here.hop.verbs[:2] == ["EHLO", "STAR"]
            assert here.hop.heard[0] == b"EHLO clamsmtpd.localdomain\r\n"
            await gone(here)
            assert len(here.hop.texts) == 1

    run(main())


@pytest.mark.parametrize(
    ("level", "name", "reply"),
    [("verify", "another.example.org", b"421 4.7.4 "), ("encrypt", "another.example.org", b"220 ")],
)
def test_a_certificate_of_somebody_else(
    tmp_path: Path,
    pki: Pki,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    level: str,
    name: str,
    reply: bytes,
) -> None:
    pki.authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    pki.issue(name)

    async def main() -> None:
        async with world(tmp_path, f"OutTLS: {level}", hop=secure_hop(pki.server())) as here:
            client = await here.client()
            assert (await client.reply()).startswith(reply)
            client.close()
            await gone(here)

    run(main())
    assert ("certificate" in caplog.text) is (level == "verify")


@pytest.mark.parametrize(("level", "reply"), [("may", b"220 "), ("encrypt", b"421 4.7.4 "), ("verify", b"421 4.7.4 ")])
def test_a_next_hop_without_tls(tmp_path: Path, level: str, reply: bytes) -> None:
    async def main() -> None:
        async with world(tmp_path, f"OutTLS: {level}", hop=secure_hop(None)) as here:
            client = await here.client()
            assert (await client.reply()).startswith(reply)
            client.close()
            await gone(here)

    run(main())


@pytest.mark.parametrize(("level", "reply"), [("may", b"220 "), ("encrypt", b"421 4.7.4 ")])
def test_a_next_hop_whose_handshake_fails(tmp_path: Path, pki: Pki, level: str, reply: bytes) -> None:
    async def main() -> None:
        hop = secure_hop(pki.server(), handshakes_fail=True)
        async with world(tmp_path, f"OutTLS: {level}", hop=hop) as here:
            client = await here.client()
            assert (await client.reply()).startswith(reply)
            if level == "may":
                # In plain text, on a second connection.
                assert (await client.ask(EHLO)).startswith(b"250")
                assert hop.connections == 2
            client.close()
            await gone(here)
            assert not here.server._setup.host.outgoing

    run(main())


class Fleeing(SecureHop):
    """A next hop that closes the connection in place of its handshake; on the second connection it is a plain one."""

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.connections > 1:
            await super()._talk(reader, writer)
            return
        writer.write(b"220 hop\r\n")
        await reader.readline()
        writer.write(b"250-hop\r\n250 STARTTLS\r\n")
        await reader.readline()
        writer.write(b"220 go\r\n")
        await reader.read(1)


@pytest.mark.parametrize(("level", "reply"), [("may", b"220 "), ("encrypt", b"421 4.7.4 ")])
def test_a_next_hop_that_leaves_in_its_handshake(tmp_path: Path, level: str, reply: bytes) -> None:
    async def main() -> None:
        async with world(tmp_path, f"OutTLS: {level}", hop=Fleeing()) as here:
            client = await here.client()
            assert (await client.reply()).startswith(reply)
            client.close()
            await gone(here)
            assert not here.server._setup.host.outgoing

    run(main())


@pytest.mark.parametrize("level", ["may", "encrypt"])
def test_draining_while_we_shake_hands_with_the_next_hop(tmp_path: Path, level: str) -> None:
    class Slow(SecureHop):
        async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hop\r\n")
            await reader.readline()
            writer.write(b"250-hop\r\n250 STARTTLS\r\n")
            await reader.readline()
            writer.write(b"220 go\r\n")
            await reader.read()

    async def main() -> None:
        async with world(tmp_path, f"OutTLS: {level}", "TimeOut: 1", hop=Slow()) as here:
            client = await here.client()
            await asyncio.sleep(0.1)
            here.stop.set()
            assert (await client.rest()).startswith(b"421 ")
            await asyncio.wait_for(here.served, 10)

    run(main())


def test_a_client_that_leaves_while_we_shake_hands_with_the_next_hop(tmp_path: Path, pki: Pki) -> None:
    class Silent(SecureHop):
        async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hop\r\n")
            await reader.readline()
            writer.write(b"250-hop\r\n250 STARTTLS\r\n")
            await reader.readline()
            writer.write(b"220 go\r\n")
            await reader.read()

    async def main() -> None:
        async with world(tmp_path, "OutTLS: may", hop=Silent()) as here:
            client = await here.client()
            await asyncio.sleep(0.1)
            client.close()
            await gone(here)

    run(main())


# ---- who the client is ----------------------------------------------------------------------------

TRUSTED = "TrustedClients: 127.0.0.0/8"
PROXY = (TRUSTED, "ProxyProtocol: on")


@pytest.mark.parametrize("pieces", [1, 5, 100])
def test_the_address_behind_a_proxy(tmp_path: Path, caplog: pytest.LogCaptureFixture, pieces: int) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with world(tmp_path, *PROXY, "Header: X-From: %i") as here:
            client = await here.client()
            data = b"PROXY TCP4 192.0.2.9 192.0.2.25 4711 25\r\n" + EHLO + b"\r\n"
            for at in range(0, len(data), pieces):
                client.send(data[at : at + pieces])
                await asyncio.sleep(0)
            assert (await client.reply()).startswith(b"220 ")
            assert (await client.reply()).startswith(b"250")
            await client.ask(b"MAIL FROM:<a@example.org>")
            await client.ask(b"RCPT TO:<b@example.org>")
            assert await client.message() == b"250 queued\r\n"
            assert b"X-From: 192.0.2.9\r\n" in here.hop.texts[0]

    run(main())
    assert "accepted connection from: 192.0.2.9 (through the proxy 127.0.0.1)" in caplog.text
    assert "accepted connection from: 127.0.0.1" not in caplog.text


def test_a_proxy_that_asks_whether_we_are_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, *PROXY) as here:
            client = await here.client()
            client.send(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")
            assert (await client.reply()).startswith(b"220 ")

    run(main())


@pytest.mark.parametrize("says", [b"EHLO x\r\n", b"PROXY TCP4 nonsense\r\n"])
def test_a_trusted_proxy_without_its_header(tmp_path: Path, says: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world(tmp_path, *PROXY) as here:
            client = await here.client()
            client.send(says)
            with contextlib.suppress(ConnectionResetError):
                assert await client.rest() == b""
            await gone(here)
            assert here.hop.connections == 0

    run(main())
    assert "PROXY header of 127.0.0.1" in caplog.text


def test_a_header_that_does_not_come(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world(tmp_path, *PROXY, "TimeOut: 1") as here:
            for says in (b"", b"PROXY TCP4 "):
                client = await here.client()
                client.send(says)
                assert await client.rest() == b""
                await gone(here)

    run(main())
    assert caplog.text.count("did not come in time") == 2


def test_a_slow_header_takes_no_time_from_the_next_hop(tmp_path: Path) -> None:
    class Slow(Hop):
        async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.7)
            await super()._talk(reader, writer)

    async def main() -> None:
        async with world(tmp_path, *PROXY, "TimeOut: 1", hop=Slow()) as here:
            client = await here.client()
            await asyncio.sleep(0.7)
            client.send(b"PROXY TCP4 192.0.2.1 127.0.0.1 5000 25\r\n")
            assert (await client.reply()).startswith(b"220 ")

    run(main())


def test_a_client_that_leaves_within_its_header(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, *PROXY) as here:
            client = await here.client()
            client.send(b"PROXY ")
            await asyncio.sleep(0.05)
            client.close()
            await gone(here)
            client = await here.client()
            client.writer.write_eof()
            assert await client.rest() == b""
            await gone(here)

    run(main())


def test_draining_while_a_header_is_awaited(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, *PROXY) as here:
            client = await here.client()
            await asyncio.sleep(0.05)
            here.stop.set()
            await asyncio.wait_for(here.served, 10)
            client.close()

    run(main())


def test_who_is_not_trusted_may_not_be_a_proxy(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "TrustedClients: 192.0.2.1", "ProxyProtocol: on") as here:
            client = await here.client()
            client.send(b"PROXY TCP4 192.0.2.9 192.0.2.25 4711 25\r\n")
            assert (await client.reply()).startswith(b"220 ")
            assert (await client.reply()).startswith(b"421 4.7.0 ")
            client = await here.client()
            assert (await client.reply()).startswith(b"220 ")
            assert (await client.ask(b"XCLIENT ADDR=192.0.2.9")).startswith(b"550 5.7.0 ")

    run(main())


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.9 192.0.2.25 4711 25\r\n", b"PROXY UNKNOWN\r\n"])
def test_trust_in_a_proxy_is_no_trust_in_those_behind_it(tmp_path: Path, header: bytes) -> None:
    async def main() -> None:
        async with world(tmp_path, *PROXY) as here:
            client = await here.client()
            client.send(header)
            assert (await client.reply()).startswith(b"220 ")
            assert b"XCLIENT" not in await client.ask(EHLO)
            assert (await client.ask(b"XCLIENT ADDR=192.0.2.10")).startswith(b"550 5.7.0 ")

    run(main())


def test_the_address_that_xclient_tells(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hop = Hop(replies={"EHLO": b"250-hop\r\n250 XFORWARD NAME ADDR PROTO HELO\r\n"})
    hook = tmp_path / "hook"

    async def main() -> None:
        settings = (TRUSTED, "Header: X-From: %i", f"VirusAction: echo $CLIENT > {hook}")
        async with world(tmp_path, *settings, hop=hop) as here:
            client = await here.client()
            await client.reply()
            assert b"XCLIENT" in await client.ask(EHLO)
            assert (await client.ask(b"XCLIENT ADDR=IPV6:2001:DB8::9 NAME=outside")).startswith(b"220 ")
            assert b"250" in await client.ask(b"EHLO outside")
            await client.ask(b"MAIL FROM:<a@example.org>")
            await client.ask(b"RCPT TO:<b@example.org>")
            assert await client.message() == b"250 queued\r\n"
            assert b"X-From: 2001:db8::9\r\n" in here.hop.texts[0]
            assert b"XFORWARD NAME=outside ADDR=IPV6:2001:db8::9 PROTO=ESMTP HELO=outside\r\n" in hop.heard
            here.clamd.reply = b"fd[1]: Eicar FOUND\0"
            await client.ask(b"MAIL FROM:<a@example.org>")
            await client.ask(b"RCPT TO:<b@example.org>")
            assert (await client.message()).startswith(b"250 2.0.0 Virus found")
            for _ in range(100):
                if hook.exists() and hook.read_text():
                    break
                await asyncio.sleep(0.05)

    run(main())
    assert hook.read_text() == "2001:db8::9\n"
    assert "client is: 2001:db8::9 (as 127.0.0.1 says by XCLIENT)" in caplog.text


# ---- LMTP, SIZE -----------------------------------------------------------------------------------


def test_lmtp_on_both_sides(tmp_path: Path) -> None:
    hop = Hop(replies={"LHLO": b"250-hop\r\n250 PIPELINING\r\n", ".": b"250 one\r\n452 two\r\n"})

    async def main() -> None:
        async with world(tmp_path, "Listen: lmtp:127.0.0.1:24", hop=hop, out="lmtp:{}") as here:
            client = await here.client()
            assert await client.reply() == b"220 clamsmtpd.localdomain LMTP\r\n"
            assert (await client.ask(b"EHLO x")).startswith(b"500 ")
            assert (await client.ask(b"LHLO x")).startswith(b"250")
            client.send(b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nDATA\r\n")
            for code in (b"250 ", b"250 ", b"250 ", b"354 "):
                assert (await client.reply()).startswith(code)
            client.send(b"text\r\n.\r\n")
            assert [await client.reply(), await client.reply()] == [b"250 one\r\n", b"452 two\r\n"]
            here.clamd.reply = b"fd[1]: Eicar FOUND\0"
            client.send(b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nDATA\r\n")
            for code in (b"250 ", b"250 ", b"250 ", b"354 "):
                assert (await client.reply()).startswith(code)
            client.send(b"text\r\n.\r\n")
            assert [(await client.reply())[:9], (await client.reply())[:9]] == [b"250 2.0.0"] * 2
            assert (await client.ask(b"QUIT")).startswith(b"221 ")

    run(main())


def test_a_message_that_is_too_large_is_read_and_refused(tmp_path: Path) -> None:
    hop = Hop(replies={"EHLO": b"250-hop\r\n250 SIZE 100000\r\n"})

    async def main() -> None:
        async with world(tmp_path, hop=hop) as here:
            client = await here.client()
            await client.envelope()
            assert (await client.message(b"x" * 998 + b"\r\n" + (b"y" * 98 + b"\r\n") * 20000)).startswith(
                b"552 5.3.4 "
            )
            assert list(here.folder.iterdir()) == []
            assert here.clamd.requests == 0
            client.send(b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 200000 LAST\r\n" + b"z" * 200000 + b"NOOP\r\n")
            replies = [await client.reply() for _ in range(4)]
            assert [reply[:3] for reply in replies] == [b"250", b"250", b"552", b"250"]
            assert hop.texts == []

    run(main())


def test_a_large_message_in_chunks(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            text = b"Subject: x\r\n\r\n" + b".\r\n" * 300_000
            for at in range(0, len(text), 100_001):
                chunk = text[at : at + 100_001]
                client.send(b"BDAT %d\r\n" % len(chunk) + chunk)
                assert (await client.reply()).startswith(b"250 2.0.0 ")
            assert await client.ask(b"BDAT 0 LAST") == b"250 queued\r\n"
            (sent,) = here.hop.texts
            assert sent == text.replace(b"\r\n.", b"\r\n..").replace(
                b"\r\n\r\n", b"\r\nX-Virus-Scanned: ClamAV using ClamSMTP\r\n\r\n", 1
            )

    run(main())


def test_a_client_that_pipelines_and_never_reads_takes_no_memory(tmp_path: Path) -> None:
    hop = Hop(replies={"EHLO": b"250-hop\r\n250 PIPELINING\r\n", "RCPT": b"250 " + b"x" * 200 + b"\r\n"})

    async def main() -> None:
        async with world(tmp_path, hop=hop) as here:
            client = await here.client()
            await client.envelope()
            client.writer.transport.set_write_buffer_limits(high=0)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 1_000_000:
                    client.send(b"RCPT TO:<b@example.org>\r\n" * 1000)
                    sent += 1000
                    await asyncio.wait_for(client.writer.drain(), 1)
            # It was stopped by what the sockets hold, and by nothing of ours that grows.
            assert sent < 1_000_000
            (session,) = here.server._sessions
            assert len(session.relay._input) < 400_000
            assert session._client is not None
            assert session._client.get_write_buffer_size() < 400_000
            client.writer.transport.abort()
            await gone(here)

    run(main())


# ---- CHUNKING ------------------------------------------------------------------------------------


@pytest.mark.parametrize("extensions", [b"250-hop\r\n250 CHUNKING\r\n", b"250 hop\r\n"])
def test_whoever_scans_while_chunks_come_in_knows_whether_dots_are_stuffed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extensions: bytes
) -> None:
    raw = []
    monkeypatch.setattr(Inspector, "begin", lambda _, message: raw.append(message.raw))

    async def main() -> None:
        async with world(tmp_path, hop=Hop({"EHLO": extensions})) as here:
            client = await here.client()
            await client.envelope()
            client.send(b"BDAT 4\r\n.x\r\n")
            assert (await client.reply()).startswith(b"250 ")
            assert raw == [b"CHUNKING" in extensions]

    run(main())
