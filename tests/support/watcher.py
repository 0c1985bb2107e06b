"""A world around a relay, in which anything may happen, that looks for what must never be.

It performs the effects as a session does, and holds them against :mod:`tests.support.sides`, which read the same
octets in their own way. What fails is an assertion.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from clamsmtpd.smtp.events import (
    Awaits,
    BeginMessage,
    CloseClient,
    CloseServer,
    Discard,
    Effect,
    Inspect,
    Reconnect,
    SecureClient,
    SecureServer,
    Store,
    ToClient,
    ToServer,
    Transmit,
)
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import OUTSTANDING_MAX, Relay, Terms
from clamsmtpd.values import Decision, Deliver, Drop, OutTls
from tests.support.plain import stuff, unstuff
from tests.support.sides import AUTH_LINE, ClientSide, ServerSide

__all__ = ["Watcher"]

# What the client says word for word, and nobody else; but for QUIT, whose spelling is all there is to it.
_CLIENTS_OWN = re.compile(rb"(?:MAIL|RCPT|VRFY|EXPN|HELP|ETRN|AUTH|QUIT)(?:[ \t]|\r)", re.IGNORECASE)

# What only the next hop can say yes to, and to a line of AUTH anything.
_RELAYED = frozenset({"MAIL", "RCPT", "VRFY", "EXPN", "ETRN", "auth line"})

# A dot that some server takes for the end of a message.
_LONE_DOT = re.compile(rb"[\r\n]\0*\.\0*[\r\n]")


@dataclass
class Watcher:
    """Lets things happen to a relay of its own.

    ``pieces``: into how many octets at most what either side sends is cut. ``shortcuts``: a single line goes the short
    way, if the relay has one for it.
    """

    terms: Terms = field(default_factory=Terms)
    identity: Identity = field(default_factory=Identity)
    pieces: int = 1 << 20
    shortcuts: bool = False

    #: What came out, for comparison: octets to either side, and texts that were handed to the next hop.
    said: bytearray = field(default_factory=bytearray)
    asked: bytearray = field(default_factory=bytearray)
    transmitted: list[bytes] = field(default_factory=list)

    stored: bool = False
    inspecting: bool = False
    decision: Decision | None = None
    storing: bool = False
    full: bool = False
    client_ended: bool = False
    draining: bool = False
    client_closed: bool = False
    server_closed: bool = False
    securing_client: bool = False
    securing_server: bool = False
    #: What comes out may depend on how octets were cut: TLS with the next hop is to begin in their midst, or it said
    #: more than it was asked for.
    cut_matters: bool = False

    _text: bytearray = field(default_factory=bytearray)
    _storage_failed: bool = False
    _sending: bool = False
    _handed_on: bool = False
    _told_good: int = 0
    # The next hop has an envelope for a message that it will not get.
    _envelope_left: bool = False
    _relayed: Counter[bytes] = field(default_factory=Counter)
    _own_commands: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.relay = Relay(self.terms, self.identity)
        self.client = ClientSide(lmtp=self.terms.lmtp_client)
        self.server = ServerSide()

    # ---- what happens -------------------------------------------------------------------------

    def happen(self, name: str, argument: object = None) -> None:
        """Let one thing happen, named like the method of the relay, if it can happen now."""
        relay = self.relay
        match name:
            case "client_data":
                self._client_sends(_octets(argument))
            case "server_data":
                self._server_sends(_octets(argument))
            case "decide":
                if self.inspecting and isinstance(argument, Decision):
                    self.inspecting = False
                    self.decision = argument
                    self.watch(relay.decide(argument))
            case "storage_failed":
                # It is a store that fails, when it is carried out.
                if self.storing and self.stored:
                    self._storage_failed = True
                    self.watch(relay.storage_failed())
            case "transmitted":
                if self._sending:
                    self._sending = False
                    self.server.end_text()
                self.watch(relay.transmitted())
            case "full" | "empty":
                self.full = name == "full"
                self.watch(relay.client_full(full=self.full))
            case "client_secured":
                if self.securing_client:
                    self.securing_client = False
                    self.client.secure()
                    self.watch(relay.client_secured())
            case "server_secured" | "server_insecure":
                if self.securing_server:
                    self.securing_server = False
                    self.watch(relay.server_secured() if name == "server_secured" else relay.server_insecure("no"))
            case _:
                method: Callable[..., list[Effect]] = getattr(relay, name)
                if name in ("timed_out", "client_lost", "server_lost"):
                    self.securing_client = self.securing_server = False
                tired = name == "client_eof" and relay.awaits in (Awaits.VERDICT, Awaits.TRANSMISSION)
                tired = tired and not self.client.has_more
                self.client_ended = self.client_ended or name in ("client_eof", "client_lost")
                self.draining = self.draining or name == "drain"
                self.watch(method() if argument is None else method(argument))
                # It will send its message again.
                assert self.client_closed or not tired

    def end(self) -> None:
        """Let both sides go, and look at what is left."""
        self.securing_client = self.securing_server = False
        self.client_ended = True
        self.watch(self.relay.client_lost())
        self.watch(self.relay.server_lost("gone"))
        assert self.client_closed
        assert not self.stored
        # Nothing of a message, and nothing that the client did not say, has become a command.
        commands = iter(self.client.all_commands())
        for line in self._own_commands:
            assert line in commands, f"the client did not say {line!r}, or not then"

    def _client_sends(self, octets: bytes) -> None:
        self.storing = False
        for piece in self._cut(octets):
            if self.client_ended or self.securing_client or not self.relay.wants_input:
                return
            if not self.client_closed:
                self.client.send(piece)
            if self.shortcuts and not self.server_closed and self.relay.passes_on(piece):
                self.watch([ToServer(piece)])
            else:
                self.watch(self.relay.client_data(piece), more=True)

    def _server_sends(self, octets: bytes) -> None:
        self.storing = False
        for piece in self._cut(octets):
            # Through a connection that is closed, or in the midst of a handshake, nothing comes.
            if self.server_closed or self.securing_server:
                return
            self.server.say(piece)
            if self.shortcuts and not self.client_closed and self.relay.passes_back(piece):
                self.watch([ToClient(piece)])
            else:
                self.watch(self.relay.server_data(piece), more=True)

    def _cut(self, octets: bytes) -> Iterator[bytes]:
        for at in range(0, len(octets), self.pieces):
            yield octets[at : at + self.pieces]

    # ---- what must not be ---------------------------------------------------------------------

    def watch(self, effects: list[Effect], *, more: bool = False) -> None:
        """Perform what an event has led to; ``more``: it is part of the same as the last."""
        self.storing = (more and self.storing) or any(isinstance(effect, Store) for effect in effects)
        for effect in effects:
            self._perform(effect)
        self._look_around()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case ToClient(data):
                assert not self.client_closed
                assert not self.securing_client
                self._tell(data)
            case ToServer(data, secret):
                assert not self.server_closed
                assert not self.securing_server
                self._ask(data, secret=secret)
            case BeginMessage():
                assert not self.stored
                self.stored = True
                self.inspecting = self._storage_failed = self._handed_on = False
                self.decision = None
                self._told_good = 0
                self._text.clear()
            case Store(text):
                assert self.stored
                self._text += text
            case Discard():
                assert self.stored
                self.stored = self.inspecting = False
            case Inspect():
                self._inspect(effect)
            case Transmit():
                self._transmit(effect)
            case SecureClient():
                self.securing_client = True
            case SecureServer():
                self.securing_server = True
            case Reconnect():
                assert not self.client_closed
                self.server = ServerSide()
            case CloseServer(abort):
                assert not self.server_closed
                assert abort or not self._sending, "a part of a message could be taken for the whole"
                self.server_closed = True
            case CloseClient():
                assert not self.client_closed
                assert not self.stored
                self.client_closed = True

    def _tell(self, data: bytes) -> None:
        assert data.endswith(b"\r\n")
        self.said += data
        for asked, line, code in self.client.hear(data):
            if asked == "message":
                self._envelope_left = not self._handed_on
                if 200 <= code <= 299:
                    self._told_good += 1
                    assert self._may_accept(), "250 for a message that nobody has taken"
            self._check_reply(asked, line, code)

    def _check_reply(self, asked: str, line: bytes, code: int) -> None:
        if 300 <= code <= 399:
            # Behind QUIT both sides close, whatever was said.
            assert asked in ("DATA", "AUTH", "auth line", "QUIT"), "nothing else can go on"
        if 200 <= code <= 299:
            assert asked != "DATA"
        if asked in _RELAYED and (200 <= code <= 299 or (asked == "auth line" and code != 421)):
            key = AUTH_LINE if asked == "auth line" else line
            self._relayed[key] += 1
            assert self._relayed[key] <= self.server.good[key], "the next hop did not say so, or of another command"

    def _may_accept(self) -> bool:
        if self._storage_failed or self.client.spoilt:
            return False
        if isinstance(self.decision, Deliver):
            # LMTP's next hop answers for each recipient; that of SMTP for all of them.
            return self.server.accepted >= (self._told_good if self.terms.lmtp_server else 1)
        return isinstance(self.decision, Drop)

    def _ask(self, data: bytes, *, secret: bool) -> None:
        assert data.endswith(b"\r\n")
        assert not {0, 10, 13} & set(data[:-2])
        # RFC 2920 section 3.1.
        assert not self.server.asked or self.server.pipelining
        # Otherwise the next message could go to its recipients.
        assert data == b"RSET\r\n" or not self._envelope_left
        self._envelope_left = False
        # A line of an AUTH dialogue is no command, whatever it looks like; the one that is ours cancels it.
        if data == b"DATA\r\n" and not secret:
            self._assert_deliverable()
        self.cut_matters = self.cut_matters or data == b"STARTTLS\r\n"
        if _CLIENTS_OWN.match(data) or (secret and data != b"*\r\n"):
            assert not self.full, "each command makes a reply, and the client does not take them"
            self._own_commands.append(data.removesuffix(b"\r\n"))
        self.asked += data
        self.server.hear(data, secret=secret)

    def _assert_deliverable(self) -> None:
        assert self.stored
        assert isinstance(self.decision, Deliver)
        assert not self._storage_failed
        assert not self.client.spoilt
        assert not self.server_closed

    def _inspect(self, effect: Inspect) -> None:
        assert self.stored
        assert not self._storage_failed
        self.inspecting = True
        client = self.client
        assert client.asked == "message"
        assert not client.spoilt
        assert len(effect.envelope.recipients) == client.recipients
        text = client.text
        assert bytes(self._text) in ((text, _for_data(text)) if client.chunked else (text,))

    @staticmethod
    def _with_insertions(text: bytes, effect: Transmit, decision: Deliver) -> bytes:
        """Return the text as it goes out: with our field, and with what else was decided or nothing of it."""
        added = decision.field
        own = [octets for _, octets in effect.insertions if octets in (added, added + b"\r\n")]
        others = [insertion for insertion in effect.insertions if insertion in decision.insertions]
        assert len(own) >= 1
        assert len(effect.insertions) == 1 + len(others)
        # Behind an empty line of ours there is no header section in which anything could be changed.
        assert others == list(decision.insertions) or (not others and own == [added + b"\r\n"])
        at, pieces = 0, []
        for offset, octets in effect.insertions:
            assert at <= offset <= len(text)
            pieces += [text[at:offset], octets]
            at = offset
        return b"".join([*pieces, text[at:]])

    def _transmit(self, effect: Transmit) -> None:
        self._assert_deliverable()
        assert isinstance(self.decision, Deliver)
        text, client_text = bytes(self._text), self.client.text
        if self.server.size is not None and not (self.terms.announce or self.terms.out_tls is not OutTls.OFF):
            # RFC 1870 section 5: dots that are not the author's do not count.
            assert len(client_text if self.client.chunked else unstuff(client_text)) <= self.server.size
        whole = self._with_insertions(text, effect, self.decision)
        if effect.before:
            assert self.server.chunking
            assert (effect.before, effect.after) == (b"BDAT %d LAST\r\n" % len(whole), b"")
            assert text == client_text
        else:
            assert self.server.ready_for_text
            assert effect.after == b".\r\n"
            assert text == (_for_data(client_text) if self.client.chunked else client_text)
            # The octets behind the last line's CR belong to the end.
            wire = b"\r\n" + whole + effect.after
            dot = _LONE_DOT.search(wire)
            assert dot is not None
            assert dot.start() == len(wire) - 4, "some server would see the end of the message before it"
        self.transmitted.append(whole)
        self._sending = self._handed_on = True
        self.server.take_text(self.client.recipients if self.terms.lmtp_server else 1)

    def _look_around(self) -> None:
        relay = self.relay
        awaits = relay.awaits
        assert len(relay._owed) <= OUTSTANDING_MAX
        assert self.client_closed == (awaits is Awaits.NOTHING)
        assert self.client_closed or not self.client.dismissed
        if self.server.confused or self.server.unasked:
            assert self.server_closed
            self.cut_matters = True
        if awaits in (Awaits.COMMAND, Awaits.DATA) and not self.full:
            assert not self.client.due, "the client waits for a reply, and we wait for the client"
        if awaits in (Awaits.GREETING, Awaits.REPLY, Awaits.FINAL_REPLY) and not self.securing_server:
            assert self.server.asked, "we wait for a reply that the next hop does not owe"
        if awaits is Awaits.COMMAND and self.draining and not self.full:
            assert self.client.in_transaction, "nothing is left to be waited for"
        if awaits is Awaits.COMMAND and not self.server_closed:
            assert not self.server.asked


def _for_data(text: bytes) -> bytes:
    """Return the text of chunks as DATA wants it: whole lines, and dots."""
    return stuff(text if text.endswith(b"\r\n") or not text else text + b"\r\n")


def _octets(argument: object) -> bytes:
    assert isinstance(argument, bytes)
    return argument
