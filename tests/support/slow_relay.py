"""A slow relay, which reads a dialogue line by line, and a network to run the real one in.

A next hop with fixed habits answers both; what the clients hear, and what is delivered, must be the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clamsmtpd.smtp.events import CloseServer, Discard, Effect, Inspect, Store, ToClient, ToServer, Transmit
from clamsmtpd.smtp.relay import Relay
from clamsmtpd.values import Decision, Defer, Deliver, Drop
from tests.support import plain

__all__ = ["Hop", "Network", "SlowRelay"]

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
    """Put the field at the end of the header section."""
    _, at, blank_first = plain.header_section(text)
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
                self.finish(plain.stuff(text))
            else:
                self.finish(text, raw=True)
        else:
            self.said += b"250 2.0.0 %d octets received\r\n" % size
        return True

    def refusal(self) -> bytes:
        if self.hop.sender is None:
            return b"503 5.5.1 Send MAIL first\r\n"
        return b"" if self.hop.recipients else b"554 5.5.1 No valid recipients\r\n"

    def finish(self, text: bytes, *, raw: bool = False) -> None:
        decision = judge(text)
        if not raw and plain.is_deceptive(text):
            self.hop.answer(b"RSET")
            self.said += b"550 5.6.0 Message holds a dot between line ends that are not CRLF\r\n"
        elif isinstance(decision, Deliver):
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
