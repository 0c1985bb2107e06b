"""The relay against a slow one: the same dialogue, read line by line, must come out the same.

A next hop with fixed habits answers; the network cuts what both sides send in every possible way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from clamsmtpd.smtp.events import CloseServer, Discard, Effect, Inspect, Store, ToClient, ToServer, Transmit
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import Relay, Terms
from clamsmtpd.values import Decision, Defer, Deliver, Drop

FIELD = b"X-Scanned: yes\r\n"


@dataclass
class Hop:
    """A next hop with habits. ``delivered`` holds its envelopes and texts."""

    chunking: bool = False
    delivered: list[tuple[bytes, list[bytes], bytes]] = field(default_factory=list)
    sender: bytes | None = None
    recipients: list[bytes] = field(default_factory=list)

    def answer(self, line: bytes) -> bytes:
        verb, _, argument = line.partition(b" ")
        match verb.upper():
            case b"EHLO":
                self.reset()
                return b"250-hop\r\n250-PIPELINING\r\n%b250 SIZE\r\n" % (b"250-CHUNKING\r\n" if self.chunking else b"")
            case b"MAIL" if self.sender is None and b"bad" not in argument:
                self.sender = argument
                return b"250-2.1.0\r\n250 ok\r\n"
            case b"RCPT" if self.sender is not None and b"bad" not in argument:
                self.recipients.append(argument)
                return b"250 2.1.5 ok\r\n"
            case b"RSET":
                self.reset()
                return b"250 reset\r\n"
            case b"DATA":
                return b"354 go\r\n" if self.recipients else b"503 no\r\n"
            case b"NOOP":
                return b"250 noop\r\n"
            case b"QUIT":
                return b"221 bye\r\n"
            case _:
                return b"550 no\r\n"

    def take(self, text: bytes) -> bytes:
        self.delivered.append((self.sender or b"", list(self.recipients), text))
        self.reset()
        return b"250 2.0.0 queued\r\n"

    def reset(self) -> None:
        self.sender = None
        self.recipients = []


def judge(text: bytes) -> Decision:
    if b"virus" in text:
        return Drop()
    return Defer() if b"broken" in text else Deliver(FIELD)


def insert(text: bytes) -> bytes:
    """Put the field in by walking the lines."""
    at = 0
    for line in text.split(b"\r\n")[:-1]:
        # Chunks may put two texts together, and their seam may look like a field.
        if not (re.match(rb"[!-9;-~]+[ \t]*:", line) or (at and line.startswith(b" "))):
            break
        at += len(line) + 2
    blank_first = not at and text[:1] == b" "
    return text[:at] + FIELD + (b"\r\n" if blank_first else b"") + text[at:]


REFUSED = {
    Drop: b"250 2.0.0 Virus found; message discarded\r\n",
    Defer: b"451 4.3.0 Virus scan not possible now; try again later\r\n",
}


class SlowRelay:
    """Serves a client that sends ``octets`` and reads all answers, in the plainest way; ``said`` are those."""

    def __init__(self, octets: bytes, hop: Hop) -> None:
        self.octets = octets
        self.hop = hop
        self.said = b"220 clamsmtpd.localdomain ESMTP\r\n"
        self.chunks: bytes | None = None
        self.refused = False
        self.greeted = False
        while (line := self.line()) is not None and self.serve(line):
            pass

    def line(self) -> bytes | None:
        line, end, rest = self.octets.partition(b"\r\n")
        if not end:
            return None
        self.octets = rest
        return line

    def serve(self, line: bytes) -> bool:
        hop = self.hop
        verb, *words = line.upper().split(b" ")
        if verb == b"BDAT":
            return self.chunk(int(words[0]), last=words[1:] == [b"LAST"])
        if verb not in (b"EHLO", b"MAIL", b"RCPT", b"RSET", b"DATA", b"NOOP", b"QUIT"):
            self.said += b"500 5.5.1 Command not recognized\r\n"
        elif (self.chunks is not None or self.refused) and verb in (b"MAIL", b"RCPT", b"DATA"):
            self.said += b"503 5.5.1 Not between the chunks of a message\r\n"
        elif verb == b"DATA":
            return self.data()
        else:
            answer = hop.answer(line)
            if verb in (b"EHLO", b"RSET"):
                self.chunks, self.refused = None, False
            if verb == b"EHLO":
                self.greeted = True
                answer = b"250-clamsmtpd.localdomain\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 SIZE\r\n"
            self.said += answer
        return verb != b"QUIT"

    def data(self) -> bool:
        if refusal := self.refusal():
            self.said += refusal
            return True
        self.said += b"354 End data with <CR><LF>.<CR><LF>\r\n"
        text = b""
        while (line := self.line()) != b".":
            if line is None:
                return False
            text += line + b"\r\n"
        self.finish(text)
        return True

    def chunk(self, size: int, *, last: bool) -> bool:
        refusal = self.refusal()
        chunk, self.octets = self.octets[:size], self.octets[size:]
        if len(chunk) < size:
            return False
        if self.hop.sender is None:
            self.said += refusal
            return True
        if self.refused:
            refusal = b"503 5.5.1 A chunk of this message was refused; send RSET\r\n"
        elif not refusal:
            self.chunks = (self.chunks or b"") + chunk
        if refusal:
            self.refused = not last
            self.said += refusal
            if last:
                self.hop.answer(b"RSET")
        elif last:
            text = self.chunks or b""
            self.chunks = None
            if not (self.hop.chunking and self.greeted):
                text += b"" if text.endswith(b"\r\n") or not text else b"\r\n"
                text = b"\r\n".join(b"." + line if line[:1] == b"." else line for line in text.split(b"\r\n"))
            self.finish(text)
        else:
            self.said += b"250 2.0.0 %d octets received\r\n" % size
        return True

    def refusal(self) -> bytes:
        if self.hop.sender is None:
            return b"503 5.5.1 Send MAIL first\r\n"
        return b"" if self.hop.recipients else b"554 5.5.1 No valid recipients\r\n"

    def finish(self, text: bytes) -> None:
        decision = judge(text)
        if isinstance(decision, Deliver):
            self.said += self.hop.take(insert(text))
        else:
            self.hop.answer(b"RSET")
            self.said += REFUSED[type(decision)]


class Network:
    """Runs a relay between a client's octets and a hop, cutting everything to pieces as it is told."""

    def __init__(self, hop: Hop, sizes: list[int]) -> None:
        self.hop = hop
        self.relay = Relay()
        self.sizes = sizes
        self.turn = 0
        self.said = b""
        self.text = b""
        self.closed = False
        self.to_relay: list[bytes] = [b"220 hop\r\n"]

    def size(self) -> int:
        self.turn += 1
        return self.sizes[self.turn % len(self.sizes)]

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ToClient(data):
                    self.said += data
                case ToServer(data):
                    self.to_relay += [self.hop.answer(line) for line in data.split(b"\r\n")[:-1]]
                case Store(text):
                    self.text += text
                case Discard():
                    self.text = b""
                case Inspect():
                    self.perform(self.relay.decide(judge(self.text)))
                case Transmit(((offset, added),), before):
                    text = self.text[:offset] + added + self.text[offset:]
                    assert before in (b"", b"BDAT %d LAST\r\n" % len(text))
                    self.perform(self.relay.transmitted())
                    self.to_relay.append(self.hop.take(text))
                case CloseServer():
                    self.closed = True

    def run(self, octets: bytes) -> bytes:
        while (octets or self.to_relay) and not self.closed:
            if self.to_relay and (self.size() % 2 or not octets):
                reply = self.to_relay.pop(0)
                cut = self.size()
                if cut < len(reply):
                    self.to_relay.insert(0, reply[cut:])
                self.perform(self.relay.server_data(reply[:cut]))
            elif octets:
                cut = self.size()
                piece, octets = octets[:cut], octets[cut:]
                self.perform(self.relay.client_data(piece))
        return self.said


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
