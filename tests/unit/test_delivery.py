"""What reaches the next hop of what a client sends: every octet of it, and what we put in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from email.parser import BytesParser
from functools import cache
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clamsmtpd.account import Tag
from clamsmtpd.clamd.client import EarlyScan
from clamsmtpd.clamd.course import Course
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.config import load
from clamsmtpd.hooks import HookRunner
from clamsmtpd.inspection import Inspector, Route
from clamsmtpd.scans import Scans
from clamsmtpd.smtp.body import EndOfData, unstuff
from clamsmtpd.smtp.events import Effect, Inspect, Store, Transmit
from clamsmtpd.smtp.relay import Relay
from clamsmtpd.spool import MEMORY_MAX, Spool
from clamsmtpd.values import Clean, Oversize, Verdict
from tests.support.spooled import wire
from tests.support.world import run, world

PLAIN, CHUNKING = b"250 hop\r\n", b"250-hop\r\n250 CHUNKING\r\n"
SCANNED = b"X-Virus-Scanned: ClamAV using ClamSMTP\r\n"
DEFAULT = f"Header: {SCANNED.decode().rstrip()}"
LARGE = b"p" * MEMORY_MAX + b"\r\n"


class NothingFound:
    """A scanner for which all is clean."""

    async def scan(self, _message: Spool, _early: EarlyScan | None = None, _course: Course | None = None) -> Verdict:
        return Clean()


@cache
def inspector(folder: Path, header: str) -> Inspector:
    config = folder / "conf"
    config.write_text(f"OutAddress: 25\nTempDirectory: {folder}\n{header}\n")
    return Inspector(load(str(config)).settings, cast("Scans", NothingFound()), cast("HookRunner", None))


def delivered(folder: Path, message: bytes, *, hop: bytes = PLAIN, header: str = DEFAULT) -> bytes:
    """Return the text that the next hop gets of ``message``, which is DATA or BDAT and what follows it."""
    relay = Relay()
    relay.server_data(b"220 hop\r\n")
    for line, reply in ((b"EHLO x", hop), (b"MAIL FROM:<a>", b"250 ok\r\n"), (b"RCPT TO:<b>", b"250 ok\r\n")):
        relay.client_data(line + b"\r\n")
        relay.server_data(reply)
    spool = Spool(str(folder), "test")
    try:
        effects = relay.client_data(message)
        for effect in effects:
            if isinstance(effect, Store):
                spool.append(effect.text)
        (inspect,) = [effect for effect in effects if isinstance(effect, Inspect)]
        story = inspector(folder, header).inspect(
            spool, inspect.envelope, Route(Tag("1"), "c", "l", "s"), stuffed=inspect.stuffed, header=inspect.header
        )
        after: list[Effect] = relay.decide(asyncio.run(story))
        if hop == PLAIN:
            after = relay.server_data(b"354 go\r\n")
        (transmit,) = [effect for effect in after if isinstance(effect, Transmit)]
        text = b"".join(wire(spool, *transmit.insertions))
    finally:
        spool.close()
    if hop == PLAIN:
        assert (transmit.before, transmit.after) == (b"", b".\r\n")
        return b"".join(unstuff([text]))
    assert (transmit.before, transmit.after) == (b"BDAT %d LAST\r\n" % len(text), b"")
    return text


def by_data(text: bytes) -> bytes:
    return b"DATA\r\n" + (b"\r\n" + text).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


def by_bdat(text: bytes) -> bytes:
    return b"BDAT %d LAST\r\n%b" % (len(text), text)


Send = Callable[[bytes], bytes]
WAYS = pytest.mark.parametrize(
    ("send", "hop"), [(by_data, PLAIN), (by_bdat, PLAIN), (by_bdat, CHUNKING)], ids=["DATA", "BDAT to DATA", "BDAT"]
)
SIZES = pytest.mark.parametrize("padding", [b"", LARGE], ids=["in memory", "in a file"])


@WAYS
@SIZES
@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"Subject: x\r\nX-Other: y\r\n", b"\r\ntext\r\n.\r\n..two\r\n"),
        (b"Subject: x\r\n", b"\r\nX-Virus-Scanned: in the body\r\nX-Virus-Infected: too\r\n"),
        (b"Subject: x\r\n X-Virus-Scanned: folded\r\n\tX-Virus-Infected: too\r\n", b"\r\ntext\r\n"),
        (b"Subject: x\r\n", b""),
        (b"", b"\r\nX-Virus-Scanned: in the body\r\n"),
        (b"", b"text here\r\n\r\nX-Virus-Scanned: in the body\r\n"),
    ],
)
def test_without_forged_fields_ours_is_all_that_is_added(
    tmp_path: Path, send: Send, hop: bytes, padding: bytes, header: bytes, text: bytes
) -> None:
    message = header + text + padding
    assert delivered(tmp_path, send(message), hop=hop) == header + SCANNED + text + padding
    assert delivered(tmp_path, send(message), hop=hop, header="Header: Received: x") == b"Received: x\r\n" + message
    assert delivered(tmp_path, send(message), hop=hop, header="Header:") == message


@WAYS
@SIZES
def test_forged_fields_are_renamed_and_nothing_else_is_touched(
    tmp_path: Path, send: Send, hop: bytes, padding: bytes
) -> None:
    forged = b"X-VIRUS-scanned \t: yes,\r\n folded\r\nSubject: x\rX-Virus-Infected: no\nX-Virus-Unscanned: \xff\0\r\n"
    marked = re.sub(rb"(?i)(X-Virus)", rb"X-Untrusted-\1", forged)
    body = b"\r\nX-Virus-Scanned: in the body\r\n.\r\n" + padding
    assert delivered(tmp_path, send(forged + body), hop=hop) == marked + SCANNED + body


@WAYS
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        # Some readers step over what is no field. Where it ends, all agree.
        (
            b"A: b\r\nno field\r\nX-Virus-Infected: no\r\n\r\nX-Virus-Infected: no\r\n",
            b"A: b\r\n" + SCANNED + b"no field\r\nX-Untrusted-X-Virus-Infected: no\r\n\r\nX-Virus-Infected: no\r\n",
        ),
        # Our field comes first, and an empty line behind it: nothing else is a field for anybody.
        (
            b" folded into nothing\r\nX-Virus-Infected: no\r\n\r\ntext\r\n",
            SCANNED + b"\r\n folded into nothing\r\nX-Virus-Infected: no\r\n\r\ntext\r\n",
        ),
        (b"X-Virus-Scanned: \r\n", b"X-Untrusted-X-Virus-Scanned: \r\n" + SCANNED),
    ],
)
def test_odd_messages(tmp_path: Path, send: Send, hop: bytes, message: bytes, expected: bytes) -> None:
    assert delivered(tmp_path, send(message), hop=hop) == expected


def test_what_smtp_makes_a_field_is_one(tmp_path: Path) -> None:
    # A client need not double a dot; whoever reads DATA takes one away all the same (RFC 5321 section 4.5.2).
    wire_text = (
        b"DATA\r\n.X-Virus-Scanned: yes\r\nA: b\r\n. folded\r\n.X-Virus-Infected: no\r\n\r\n.X-Virus-Infected:\r\n.\r\n"
    )
    assert delivered(tmp_path, wire_text) == (
        b"X-Untrusted-X-Virus-Scanned: yes\r\nA: b\r\n"
        + SCANNED
        + b" folded\r\nX-Untrusted-X-Virus-Infected: no\r\n\r\nX-Virus-Infected:\r\n"
    )


def test_in_front_of_a_blank_fields_are_renamed_where_we_add_none(tmp_path: Path) -> None:
    message = b" x\r\nX-Virus-Infected: no\r\nX-Virus-Scanned: yes\r\n\r\n"
    assert delivered(tmp_path, by_data(message), header="Header:") == (
        b" x\r\nX-Untrusted-X-Virus-Infected: no\r\nX-Virus-Scanned: yes\r\n\r\n"
    )


def test_behind_another_of_our_kind_the_last_word_is_ours(tmp_path: Path) -> None:
    first = delivered(tmp_path, by_data(b"A: b\r\n\r\n"))
    second = delivered(tmp_path, by_data(first))
    assert second == b"A: b\r\nX-Untrusted-" + SCANNED + SCANNED + b"\r\n"
    assert delivered(tmp_path, by_data(second)) == (
        b"A: b\r\nX-Untrusted-" + SCANNED + b"X-Untrusted-" + SCANNED + SCANNED + b"\r\n"
    )


MESSAGES = st.lists(
    st.sampled_from(
        [
            *(b"X-Virus-Scanned: forged", b"x-virus-infected: forged", b"X-Virus-Unscanned:forged", b"A: b", b"text"),
            *(b"X-Virus-Scanned : forged", b" ", b"\t", b".", b":", b"\0", b"\xff", b"From x", b"-", b"\r\n\r\n"),
            *([b"\r\n"] * 5),
            *(b"\n", b"\r"),
        ]
    ),
    max_size=25,
).map(b"".join)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    message=MESSAGES,
    way=st.sampled_from([(by_data, PLAIN), (by_bdat, PLAIN), (by_bdat, CHUNKING)]),
    header=st.sampled_from([DEFAULT, "Header:", "Header: Received: x"]),
    large=st.booleans(),
)
def test_whatever_the_message_all_of_it_arrives_and_no_forged_field_does(
    tmp_path: Path, message: bytes, way: tuple[Send, bytes], header: str, large: bool
) -> None:
    send, hop = way
    message += LARGE if large else b""
    if hop == PLAIN:
        message += b"" if message.endswith(b"\r\n") else b"\r\n"
    end = EndOfData()
    end.feed(by_data(message).removeprefix(b"DATA\r\n"))
    # A message that pretends to end goes nowhere by DATA.
    assume(hop == CHUNKING or not end.deceptive)
    ours = header.removeprefix("Header:").strip().encode()
    ours += b"\r\n" if ours else b""
    text = delivered(tmp_path, send(message), hop=hop, header=header)
    without = text.replace(b"X-Untrusted-", b"")
    at = without.find(ours)
    assert at >= 0
    empty_line = b"\r\n" if ours and message[:1] in (b" ", b"\t") else b""
    assert without == message[:at] + ours + empty_line + message[at:]
    seen = [(name.lower(), str(value)) for name, value in BytesParser().parsebytes(text, headersonly=True).items()]
    is_ours = [(name, value) for name, value in seen if re.match("x-virus-(infected|unscanned|scanned)$", name)]
    if header == DEFAULT:
        assert is_ours in ([], [("x-virus-scanned", "ClamAV using ClamSMTP")])
    else:
        assert [name for name, _ in is_ours if name != "x-virus-scanned"] == []


# ---- what the client hears ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reply", "texts"),
    [
        ("Oversize: defer", b"451 4.3.5 Message is larger than the virus scanner takes now; try again later\r\n", []),
        ("Oversize: bounce", b"552 5.3.4 Message is larger than the virus scanner takes\r\n", []),
        (
            "Oversize: pass",
            b"250 queued\r\n",
            [b"X-Untrusted-X-Virus-Scanned: yes\r\nX-Virus-Unscanned: message too large\r\n\r\ntext\r\n"],
        ),
    ],
)
def test_a_message_that_is_too_large_for_the_scanner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, reply: bytes, texts: list[bytes]
) -> None:
    async def scan(_pool: Pool, _message: Spool, _early: EarlyScan | None = None, **_: object) -> Verdict:
        return Oversize("26 MB are more than 25 MB")

    monkeypatch.setattr(Pool, "scan", scan)

    async def main() -> None:
        async with world(tmp_path, line, "ScanFailure: pass", "Action: pass") as here:
            client = await here.client()
            await client.envelope()
            assert await client.message(b"X-Virus-Scanned: yes\r\n\r\ntext\r\n") == reply
            assert here.hop.texts == texts
            assert (await client.ask(b"NOOP")).startswith(b"250 "), "the session goes on"

    run(main())


def test_a_message_with_very_many_forged_fields_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            reply = await client.message(b"X-Virus-Scanned: yes\r\n" * 101 + b"\r\n")
            assert reply == b"550 5.6.0 Message holds too many header fields that only this filter may add\r\n"
            assert here.hop.texts == []
            assert (await client.ask(b"NOOP")).startswith(b"250 ")
            assert here.hop.verbs[-2:] == ["RSET", "NOOP"]

    run(main())
