"""The relay against a slow one: the same dialogue, read line by line, must come out the same.

A next hop with fixed habits answers; the network cuts what both sides send in every possible way.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from clamsmtpd.smtp.events import ToServer
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import Relay, Terms
from tests.support.slow_relay import Hop, Network, SlowRelay

LINES = st.sampled_from(
    [
        b"EHLO me",
        b"MAIL FROM:<a@b>",
        b"MAIL FROM:<bad>",
        b"RCPT TO:<c@d>",
        b"RCPT TO:<bad>",
        b"RSET",
        b"NOOP",
        b"FOO",
        b"BAR x",
    ]
)
TEXTS = st.lists(
    st.sampled_from(
        [b"A: field", b" folded", b"", b"text", b"..", b".x", b"virus", b"broken", b"QUIT", b"MAIL FROM:<x@y>", b"\xff"]
    ),
    max_size=6,
)
ENVELOPE = b"MAIL FROM:<s@t>\r\nRCPT TO:<r@t>\r\n"


def by_data(text: list[bytes]) -> bytes:
    return b"".join(line + b"\r\n" for line in [b"DATA", *text, b"."])


@st.composite
def by_chunks(draw: st.DrawFn) -> bytes:
    text = b"\r\n".join(draw(TEXTS))
    chunks: list[bytes] = []
    while text and len(chunks) < 4:
        size = draw(st.integers(0, len(text)))
        chunks.append(text[:size])
        text = text[size:]
    chunks.append(text)
    ends = [b"" for _ in chunks]
    ends[-1] = draw(st.sampled_from([b" LAST", b" LAST", b" LAST", b""]))
    return b"".join(b"BDAT %d%b\r\n%b" % (len(chunk), end, chunk) for chunk, end in zip(chunks, ends, strict=True))


COMMANDS = st.lists(LINES, max_size=4).map(lambda lines: b"".join(line + b"\r\n" for line in lines))
MESSAGES = st.one_of(TEXTS.map(by_data), by_chunks())
TRANSACTION = st.builds(lambda *parts: b"".join(parts), COMMANDS, st.sampled_from([ENVELOPE, ENVELOPE, b""]), MESSAGES)
SESSIONS = st.lists(TRANSACTION, max_size=4).map(b"".join)


@settings(max_examples=600)
@given(SESSIONS, st.lists(st.integers(1, 40), min_size=1, max_size=12), st.booleans(), st.booleans())
def test_the_relay_agrees_with_a_slow_one(octets: bytes, sizes: list[int], quits: bool, chunking: bool) -> None:
    octets += b"QUIT\r\n" if quits else b""
    slow_hop, hop = Hop(chunking), Hop(chunking)
    expected = SlowRelay(octets, slow_hop).said
    assert Network(hop, sizes).run(octets) == expected
    assert hop.delivered == slow_hop.delivered


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=20), st.integers(1, 20))
def test_garbage_from_both_sides_never_raises(events: list[tuple[bool, bytes]], size: int) -> None:
    relay = Relay(Terms(announce=True, trusted=True, starttls=True), Identity(address="192.0.2.1"))
    relay.server_data(b"220 hop\r\n")
    for from_client, data in events:
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            effects = relay.client_data(piece) if from_client else relay.server_data(piece)
            # Nothing that a client sends without a complete command may reach the next hop.
            assert all(effect.data.endswith(b"\r\n") for effect in effects if isinstance(effect, ToServer))
