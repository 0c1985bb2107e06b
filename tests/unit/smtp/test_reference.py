"""The relay against a slow one: the same dialogue, read line by line, must come out the same.

A next hop with fixed habits answers; the network cuts what both sides send in every possible way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from clamsmtpd.smtp.events import CloseServer, Discard, Effect, Inspect, Store, ToClient, ToServer, Transmit
from clamsmtpd.smtp.relay import Relay
from clamsmtpd.values import Decision, Defer, Deliver, Drop

FIELD = b"X-Scanned: yes\r\n"


@dataclass
class Hop:
    """A next hop with habits. ``delivered`` holds its envelopes and texts."""

    delivered: list[tuple[bytes, list[bytes], bytes]] = field(default_factory=list)
    sender: bytes | None = None
    recipients: list[bytes] = field(default_factory=list)

    def answer(self, line: bytes) -> bytes:
        verb, _, argument = line.partition(b" ")
        match verb.upper():
            case b"EHLO":
                self.reset()
                return b"250-hop\r\n250-PIPELINING\r\n250 SIZE\r\n"
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
        if not (line.startswith(b"A:") or (at and line.startswith(b" "))):
            break
        at += len(line) + 2
    blank_first = not at and text[:1] == b" "
    return text[:at] + FIELD + (b"\r\n" if blank_first else b"") + text[at:]


def slow_relay(octets: bytes, hop: Hop) -> bytes:
    """Serve a client that sends ``octets`` and reads all answers, in the plainest way; return those."""
    said = b"220 clamsmtpd.localdomain ESMTP\r\n"
    lines = octets.split(b"\r\n")
    lines.pop()
    recipients = False
    while lines:
        line = lines.pop(0)
        verb = line.split(b" ")[0].upper()
        if verb == b"DATA" and recipients:
            said += b"354 End data with <CR><LF>.<CR><LF>\r\n"
            if b"." not in lines:
                return said
            end = lines.index(b".")
            text = b"".join(part + b"\r\n" for part in lines[:end])
            del lines[: end + 1]
            recipients = False
            decision = judge(text)
            if isinstance(decision, Deliver):
                hop.answer(b"DATA")
                said += hop.take(insert(text))
            else:
                hop.answer(b"RSET")
                said += (
                    b"250 2.0.0 Virus found; message discarded\r\n"
                    if isinstance(decision, Drop)
                    else b"451 4.3.0 Virus scan not possible now; try again later\r\n"
                )
        elif verb not in (b"EHLO", b"MAIL", b"RCPT", b"RSET", b"DATA", b"NOOP", b"QUIT"):
            said += b"500 5.5.1 Command not recognized\r\n"
        else:
            answer = hop.answer(line)
            if verb == b"EHLO":
                answer = b"250-clamsmtpd.localdomain\r\n250 SIZE\r\n"
            recipients = bool(hop.recipients)
            said += answer
            if verb == b"QUIT":
                break
    return said


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
                case Transmit(offset, added):
                    self.perform(self.relay.transmitted())
                    self.to_relay.append(self.hop.take(self.text[:offset] + added + self.text[offset:]))
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
TRANSACTION = st.tuples(st.lists(LINES, max_size=4), TEXTS).map(
    lambda parts: [
        *parts[0],
        *((b"MAIL FROM:<s@t>", b"RCPT TO:<r@t>", b"DATA", *parts[1], b".") if len(parts[0]) % 2 else (b"DATA",)),
    ]
)
SESSIONS = st.lists(TRANSACTION, max_size=4).map(lambda parts: [line for part in parts for line in part])


@settings(max_examples=400)
@given(SESSIONS, st.lists(st.integers(1, 40), min_size=1, max_size=12), st.booleans())
def test_the_relay_agrees_with_a_slow_one(lines: list[bytes], sizes: list[int], quits: bool) -> None:
    octets = b"".join(line + b"\r\n" for line in [*lines, *([b"QUIT"] if quits else [])])
    slow_hop, hop = Hop(), Hop()
    expected = slow_relay(octets, slow_hop)
    assert Network(hop, sizes).run(octets) == expected
    assert hop.delivered == slow_hop.delivered


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=20), st.integers(1, 20))
def test_garbage_from_both_sides_never_raises(events: list[tuple[bool, bytes]], size: int) -> None:
    relay = Relay(xclient={b"ADDR": b"192.0.2.1"})
    relay.server_data(b"220 hop\r\n")
    for from_client, data in events:
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            effects = relay.client_data(piece) if from_client else relay.server_data(piece)
            # Nothing that a client sends without a complete command may reach the next hop.
            assert all(effect.data.endswith(b"\r\n") for effect in effects if isinstance(effect, ToServer))
