"""The dialogue between a client and the next hop, as one state machine without I/O.

Octets of both sides and decisions go in, effects come out. Every transition is in this file.

A queue holds, for each command that the next hop still owes a reply for, what becomes of that reply:
most go to the client, those to our own RSET, NOOP and XCLIENT do not. A command is sent only when
nothing is owed any more, and the client's next line is read only then. So replies cannot overtake
each other, whatever the client pipelines, and no 250 can be taken for another command's.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping
from typing import ClassVar

from clamsmtpd.smtp import replies
from clamsmtpd.smtp.body import EndOfData, HeaderSection
from clamsmtpd.smtp.capabilities import filter_ehlo, xclient_attributes
from clamsmtpd.smtp.events import (
    Awaits,
    BeginMessage,
    CloseClient,
    CloseServer,
    Discard,
    Effect,
    Inspect,
    Note,
    Store,
    ToClient,
    ToServer,
    Transmit,
)
from clamsmtpd.smtp.syntax import (
    AUTH_LINE_MAX,
    COMMAND_LINE_MAX,
    CommandLines,
    Malformed,
    Refused,
    Reply,
    ReplyReader,
    parse_command,
    parse_path,
    parse_xforward,
)
from clamsmtpd.values import Bounce, Decision, Defer, Deliver, Drop, Envelope

__all__ = ["ERRORS_MAX", "INPUT_MAX", "Relay"]

#: Commands in a row that we refuse ourselves before the client is told 421. The next hop, which has a limit
#: of its own, sees none of them.
ERRORS_MAX = 100

#: Octets from the client that may wait in memory while it is not its turn.
INPUT_MAX = 65536

_OnReply = Callable[[Reply], None]

# Reply codes that change the course of the dialogue (RFC 5321 section 4.2.3, RFC 4954 section 4).
_READY = 220
_AUTH_CONTINUES = 334
_START_INPUT = 354
_CLOSING = 421

# RFC 3030 section 2: a chunk length has at most 20 digits.
_DIGITS_MAX = 20


class _Phase(enum.Enum):
    """What the client's next octets are, or what keeps it waiting."""

    COMMAND = (1, None)
    AUTH = (2, None)
    REFUSED_CHUNK = (3, None)
    DATA = (4, Awaits.DATA)
    VERDICT = (5, Awaits.VERDICT)
    TRANSMISSION = (6, Awaits.TRANSMISSION)
    FINAL_REPLY = (7, Awaits.FINAL_REPLY)
    CLOSED = (8, Awaits.NOTHING)

    def __init__(self, _number: int, awaits: Awaits | None) -> None:
        #: Whose move it is in this phase; None where it depends on what the next hop owes us.
        self.awaits = awaits


# What a client may say before it has introduced itself, when XCLIENT is on: nothing in which the
# next hop would mistake our address for the client's.
_BEFORE_XCLIENT = frozenset({b"HELO", b"EHLO", b"NOOP", b"RSET", b"HELP", b"QUIT"})


class Relay:
    """One client, one next hop, from greeting to close.

    ``xclient``: attributes of the client to announce to a next hop that offers XCLIENT, by name, values
    encoded; None when XCLIENT is off. Each method returns the effects to perform, in order.
    """

    __slots__ = (
        "_body",
        "_client_gone",
        "_decision",
        "_draining",
        "_effects",
        "_errors",
        "_failure",
        "_greeted",
        "_header",
        "_hello",
        "_input",
        "_input_ended",
        "_owed",
        "_phase",
        "_reader",
        "_recipients",
        "_remote",
        "_said_421",
        "_sender",
        "_server_gone",
        "_skip",
        "_stored",
        "_transaction",
        "_xclient",
        "steps",
    )

    def __init__(self, *, xclient: Mapping[bytes, bytes] | None = None) -> None:
        #: Counts complete commands and replies, so that a clock can tell progress from dribble.
        self.steps = 0
        self._xclient = xclient
        self._effects: list[Effect] = []
        self._phase = _Phase.COMMAND
        self._greeted = False
        self._draining = False
        self._client_gone = False
        self._server_gone = False
        self._said_421 = False
        self._input = CommandLines()
        self._input_ended = False
        self._skip = 0
        self._errors = 0
        self._reader = ReplyReader()
        self._owed: deque[_OnReply] = deque([self._on_greeting])
        self._hello = b""
        self._transaction = False
        self._sender = b""
        self._recipients: list[bytes] = []
        self._remote: dict[bytes, bytes | None] = {}
        self._body = EndOfData()
        self._header = HeaderSection()
        self._stored = False
        self._failure = b""
        self._decision: Decision | None = None

    # ---- what the session may ask -------------------------------------------------------------

    @property
    def awaits(self) -> Awaits:
        """Whose move it is now."""
        awaits = self._phase.awaits
        if awaits is not None and (awaits is not Awaits.VERDICT or self._decision is None):
            return awaits
        if self._owed:
            return Awaits.REPLY if self._greeted else Awaits.GREETING
        return Awaits.COMMAND

    @property
    def wants_input(self) -> bool:
        """Whether to go on reading from the client; false is backpressure."""
        return len(self._input) < INPUT_MAX

    @property
    def in_auth(self) -> bool:
        """Whether the client's next line is part of an AUTH dialogue."""
        return self._phase is _Phase.AUTH

    # ---- events -------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> list[Effect]:
        """Take octets from the client."""
        if self._phase is not _Phase.CLOSED:
            self._input.feed(data)
            self._read_client()
        return self._take_effects()

    def client_eof(self) -> list[Effect]:
        """Learn that the client will send nothing more, though it may still read.

        A client that hangs up, tired of waiting for the reply to its message, looks the same as one
        that has said all it had to say. Only the latter leaves a command, such as QUIT, behind its
        message. The former will send the message again, so that it must not be delivered now.
        """
        self._input_ended = True
        undecided = self._phase in (_Phase.VERDICT, _Phase.TRANSMISSION)
        if undecided and not self._input:
            self._add(Note("client left before the reply to its message; nothing delivered"))
            self._close(replies.CLIENT_LEFT)
        else:
            self._read_client()
        return self._take_effects()

    def client_lost(self) -> list[Effect]:
        """Learn that nothing can be said to the client any more."""
        self._client_gone = self._input_ended = True
        # Before the final dot, closing undoes the delivery. After it, only the next hop's reply can
        # tell the log what became of the message, so that one is waited for.
        if self._phase is not _Phase.FINAL_REPLY:
            self._close()
        return self._take_effects()

    def server_data(self, data: bytes) -> list[Effect]:
        """Take octets from the next hop."""
        self._reader.feed(data)
        self._read_server()
        return self._take_effects()

    def server_lost(self, reason: str) -> list[Effect]:
        """Learn that the connection to the next hop is gone, or never came about."""
        if self._phase is not _Phase.CLOSED and not self._server_gone:
            self._add(Note(f"next hop: {reason}"))
            self._lose_server(self._lost_reply())
        return self._take_effects()

    def refuse(self, reply: bytes) -> list[Effect]:
        """End the dialogue with ``reply``: the session has found a reason that is not in the dialogue."""
        self._close(reply)
        return self._take_effects()

    def storage_failed(self) -> list[Effect]:
        """Learn that the spool could not take the text: read the rest of the message, keep nothing."""
        self._failure = self._failure or replies.CANNOT_STORE
        self._discard()
        if self.awaits is Awaits.VERDICT:
            # It was the last of the text, and nobody will judge what is not there.
            self._decision = Defer()
            self._carry_out()
            self._read_client()
        return self._take_effects()

    def decide(self, decision: Decision) -> list[Effect]:
        """Take the decision about the message that the last ``Inspect`` handed over."""
        if self._phase is _Phase.VERDICT:
            self.steps += 1
            self._decision = decision
            self._carry_out()
            self._read_client()
        return self._take_effects()

    def transmitted(self) -> list[Effect]:
        """Learn that the text and the final dot have been handed to the connection."""
        if self._phase is _Phase.TRANSMISSION:
            self._phase = _Phase.FINAL_REPLY
            self.steps += 1
        return self._take_effects()

    def keep_alive(self) -> list[Effect]:
        """Keep the next hop awake while a message is received and scanned (setting KeepAlives)."""
        waiting = self._phase is _Phase.DATA or self.awaits is Awaits.VERDICT
        if waiting and not self._owed and not self._server_gone:
            self._ask(b"NOOP\r\n", self._on_own_noop)
        return self._take_effects()

    def drain(self) -> list[Effect]:
        """Finish the transaction in flight, then tell the client 421; at once if there is none."""
        self._draining = True
        if self.awaits is Awaits.COMMAND and not self._transaction:
            self._close(replies.SHUTTING_DOWN)
        return self._take_effects()

    def timed_out(self) -> list[Effect]:
        """Learn that whoever is awaited has let its time pass."""
        awaited = self.awaits
        if awaited in (Awaits.COMMAND, Awaits.DATA):
            self._close(replies.CLIENT_TIMED_OUT)
        elif awaited not in (Awaits.VERDICT, Awaits.NOTHING):
            self._add(Note(f"timed out waiting for {awaited.value}"))
            self._lose_server(self._lost_reply())
        return self._take_effects()

    # ---- the client's commands ----------------------------------------------------------------

    def _read_client(self) -> None:
        """Work through the client's octets for as long as it is its turn."""
        while True:
            if self._phase is _Phase.DATA:
                if not self._input:
                    break
                self._read_text()
            elif self._phase is _Phase.REFUSED_CHUNK:
                if not self._input:
                    break
                self._read_refused_chunk()
            elif self.awaits is not Awaits.COMMAND or not self._read_line():
                break
        # All input has been used, and there will be no more: not of a command, nor of a text.
        if self._input_ended and self.awaits in (Awaits.COMMAND, Awaits.DATA):
            self._close(linger=False)

    def _read_line(self) -> bool:
        if self._draining and not self._transaction:
            self._close(replies.SHUTTING_DOWN)
            return False
        in_auth = self._phase is _Phase.AUTH
        line = self._input.next(AUTH_LINE_MAX if in_auth else COMMAND_LINE_MAX)
        if line is None:
            return False
        self.steps += 1
        if in_auth:
            self._phase = _Phase.COMMAND
            # A line that must not be passed on cancels the dialogue, as the client itself may do
            # (RFC 4954 section 4). What the next hop says to that is the one reply to it.
            self._ask(b"*\r\n" if isinstance(line, Refused) else line + b"\r\n", self._on_auth, secret=True)
        elif isinstance(line, Refused):
            self._refuse(replies.COMMAND_TOO_LONG if line.too_long else replies.FORBIDDEN_OCTET)
        else:
            self._dispatch(line)
        return True

    def _dispatch(self, line: bytes) -> None:
        verb, argument = parse_command(line)
        handler = self._HANDLERS.get(verb)
        if handler is None:
            self._refuse(replies.COMMAND_UNKNOWN)
        elif self._xclient is not None and verb not in _BEFORE_XCLIENT:
            self._refuse(replies.HELLO_FIRST)
        else:
            handler(self, line + b"\r\n", argument)

    def _refuse(self, reply: bytes) -> None:
        """Refuse a command that the next hop does not get to see."""
        self._errors += 1
        if self._errors > ERRORS_MAX:
            self._close(replies.TOO_MANY_ERRORS)
        else:
            self._say(reply)

    def _do_plain(self, line: bytes, _argument: bytes) -> None:
        self._ask(line, self._pass_on)

    def _do_unavailable(self, _line: bytes, _argument: bytes) -> None:
        self._refuse(replies.COMMAND_REFUSED)

    def _do_xclient(self, _line: bytes, _argument: bytes) -> None:
        self._refuse(replies.XCLIENT_REFUSED)

    def _do_ehlo(self, line: bytes, _argument: bytes) -> None:
        self._hello = line
        self._ask(line, self._on_ehlo)

    def _do_helo(self, line: bytes, argument: bytes) -> None:
        self._hello = line
        if self._xclient is None:
            self._ask(line, self._on_helo)
        else:
            # Only EHLO tells whether the next hop offers XCLIENT.
            self._ask(b"EHLO %b\r\n" % argument, self._on_ehlo_for_xclient)

    def _do_mail(self, line: bytes, argument: bytes) -> None:
        def on_reply(reply: Reply) -> None:
            if reply.positive:
                self._transaction = True
                self._sender = parse_path(argument, b"FROM")
                self._recipients = []
            self._pass_on(reply)

        self._ask(line, on_reply)

    def _do_rcpt(self, line: bytes, argument: bytes) -> None:
        def on_reply(reply: Reply) -> None:
            if reply.positive:
                self._recipients.append(parse_path(argument, b"TO"))
            self._pass_on(reply)

        self._ask(line, on_reply)

    def _do_data(self, line: bytes, argument: bytes) -> None:
        if argument:
            self._refuse(replies.DATA_WITH_ARGUMENT)
        elif self._recipients:
            self._phase = _Phase.DATA
            self._body = EndOfData()
            self._header = HeaderSection()
            self._failure = b""
            self._decision = None
            self._stored = True
            self._add(BeginMessage())
            self._say(replies.START_INPUT)
        else:
            self._ask(line, self._on_data_without_recipient)

    def _do_rset(self, line: bytes, _argument: bytes) -> None:
        self._ask(line, self._on_rset)

    def _do_quit(self, line: bytes, _argument: bytes) -> None:
        self._ask(line, self._on_quit)

    def _do_auth(self, line: bytes, _argument: bytes) -> None:
        self._ask(line, self._on_auth, secret=True)

    def _do_xforward(self, line: bytes, argument: bytes) -> None:
        def on_reply(reply: Reply) -> None:
            if reply.positive:
                self._remote.update(parse_xforward(argument))
            self._pass_on(reply)

        self._ask(line, on_reply)

    def _do_bdat(self, _line: bytes, argument: bytes) -> None:
        length = argument.split(b" ", 1)[0]
        # RFC 3030 section 2: the octets follow the command without waiting for a reply. If their
        # number cannot be read, nobody knows where the next command starts.
        if not length.isdigit() or len(length) > _DIGITS_MAX:
            self._close(replies.BDAT_LENGTH_UNKNOWN)
            return
        self._skip = int(length)
        if self._skip:
            self._phase = _Phase.REFUSED_CHUNK
        self._refuse(replies.COMMAND_REFUSED)

    def _read_refused_chunk(self) -> None:
        data = self._input.take_all()
        if len(data) < self._skip:
            self._skip -= len(data)
        else:
            self._input.feed(data[self._skip :])
            self._phase = _Phase.COMMAND

    # ---- the message --------------------------------------------------------------------------

    def _read_text(self) -> None:
        text, rest = self._body.feed(self._input.take_all())
        if text and not self._failure:
            self._header.feed(text)
            self._add(Store(text))
        if rest is None:
            return
        self._input.feed(rest)
        self.steps += 1
        self._phase = _Phase.VERDICT
        if self._body.deceptive and not self._failure:
            self._add(Note("message refused: a dot stands between line ends that are not CRLF"))
            self._failure = replies.DECEPTIVE_END
        if self._failure:
            self._decision = Defer()
            self._carry_out()
        else:
            self._add(Inspect(self._envelope(), self._body.stuffed))

    def _carry_out(self) -> None:
        """Do what was decided about the message, once the next hop owes us nothing."""
        decision = self._decision
        if self._phase is not _Phase.VERDICT or decision is None or self._owed:
            return
        if self._failure:
            self._finish_message(self._failure)
        elif isinstance(decision, Drop):
            self._finish_message(replies.VIRUS_DROPPED)
        elif isinstance(decision, Bounce):
            self._finish_message(replies.VIRUS_BOUNCED)
        elif isinstance(decision, Defer):
            self._finish_message(replies.SCAN_FAILED)
        elif self._server_gone:
            self._finish_message(replies.NEXT_HOP_LOST_MESSAGE)
        else:
            self._ask(b"DATA\r\n", self._on_data)

    def _finish_message(self, reply: bytes) -> None:
        """Give the client its one reply about a message of which the next hop took no text."""
        self._say(reply)
        self._discard()
        self._phase = _Phase.COMMAND
        self._forget_envelope()
        if self._server_gone:
            self._close(replies.NEXT_HOP_LOST)
        else:
            self._ask(b"RSET\r\n", self._on_own_rset)

    def _on_data(self, reply: Reply) -> None:
        """Take the answer to DATA for a message that is to be delivered."""
        decision = self._decision
        if reply.code == _START_INPUT and isinstance(decision, Deliver):
            field = decision.field
            if field and self._header.blank_first:
                field += b"\r\n"
            self._phase = _Phase.TRANSMISSION
            self._owed.append(self._on_final_reply)
            self._add(Transmit(self._header.top if decision.on_top else self._header.end, field))
        elif reply.negative:
            self._add(Note(f"next hop refused DATA: {_show(reply)}"))
            self._finish_message(reply.encode())
        else:
            # RFC 5321 section 4.3.2: only 354 asks for the text.
            self._break_off(f"answered DATA with {_show(reply)}")

    def _on_final_reply(self, reply: Reply) -> None:
        """Take the answer to the whole message."""
        early = self._phase is _Phase.TRANSMISSION
        if not reply.negative and (early or not reply.positive):
            when = "before the end" if early else "to the end"
            self._break_off(f"answered {_show(reply)} {when} of a message")
            return
        if reply.negative:
            self._add(Note(f"next hop refused the message: {_show(reply)}"))
        self._say(reply.encode())
        if early or self._client_gone:
            # Refused while the text was still going out: whatever we send next could be read as text.
            self._close(None if self._client_gone else replies.NEXT_HOP_LOST)
        else:
            self._discard()
            self._phase = _Phase.COMMAND
            self._forget_envelope()

    def _on_data_without_recipient(self, reply: Reply) -> None:
        """Take the answer to DATA when there is nobody to deliver to."""
        if reply.code == _START_INPUT:
            # RFC 2920 section 3.1: end the text at once. Nobody can get it, and the refusal that
            # follows is what the client must hear.
            self._ask(b".\r\n", self._on_empty_text)
        elif reply.negative:
            self._pass_on(reply)
        else:
            self._break_off(f"answered DATA with {_show(reply)}")

    def _on_empty_text(self, reply: Reply) -> None:
        self._forget_envelope()
        self._say(reply.encode() if reply.negative else replies.NO_RECIPIENTS)

    # ---- the next hop's replies ---------------------------------------------------------------

    def _ask(self, command: bytes, on_reply: _OnReply, *, secret: bool = False) -> None:
        """Send a command to the next hop, which owes us nothing; ``on_reply`` gets the reply."""
        self._errors = 0
        self._owed.append(on_reply)
        self._add(ToServer(command, secret))

    def _read_server(self) -> None:
        while self._phase is not _Phase.CLOSED and not self._server_gone:
            reply = self._reader.next()
            if reply is None:
                break
            if isinstance(reply, Malformed):
                self._break_off(f"sent what is no SMTP reply: {reply.text.decode('latin-1')}")
                break
            self.steps += 1
            if self._owed:
                self._owed.popleft()(reply)
                self._after_reply(reply)
            elif reply.code == _CLOSING:
                self._add(Note(f"next hop closed the dialogue: {_show(reply)}"))
                self._lose_server(reply.encode())
            else:
                # From here on, every reply would be taken for another command's.
                self._break_off(f"sent a reply that nobody asked for: {_show(reply)}")
        self._carry_out()
        self._read_client()

    def _after_reply(self, reply: Reply) -> None:
        if reply.code == _CLOSING and not self._server_gone:
            # RFC 5321 section 3.8: it closes behind this reply, and so must we.
            self._close(None if self._said_421 else replies.NEXT_HOP_LOST)

    def _pass_on(self, reply: Reply) -> None:
        if reply.positive or reply.negative:
            self._say(reply.encode())
        else:
            # 3yz asks for input that the command had no room for.
            self._break_off(f"asked for more with {_show(reply)}")

    def _on_greeting(self, reply: Reply) -> None:
        if reply.code == _READY:
            self._greeted = True
            self._say(replies.greeting())
        elif reply.negative:
            self._close(reply.encode())
        else:
            self._break_off(f"greeted with {_show(reply)}")

    def _on_helo(self, reply: Reply) -> None:
        if reply.positive:
            self._forget_envelope()
            self._say(replies.hello())
        else:
            self._pass_on(reply)

    def _on_ehlo(self, reply: Reply) -> None:
        if not reply.positive:
            self._pass_on(reply)
        elif not self._send_xclient(reply):
            self._forget_envelope()
            self._say(filter_ehlo(reply.lines))

    def _on_ehlo_for_xclient(self, reply: Reply) -> None:
        if not reply.positive or not self._send_xclient(reply):
            self._xclient = None
            self._ask(self._hello, self._on_helo)

    def _send_xclient(self, ehlo: Reply) -> bool:
        """Announce the client, if that is wanted and not yet done; tell whether a command was sent."""
        if self._xclient is None:
            return False
        offered = xclient_attributes(ehlo.lines)
        known = [b"%b=%b" % item for item in self._xclient.items() if item[0] in (offered or ())]
        if not known:
            self._add(Note("next hop does not offer XCLIENT; it takes the filter's address for the client's"))
            self._xclient = None
            return False
        self._ask(b"XCLIENT %b\r\n" % b" ".join(known), self._on_xclient)
        return True

    def _on_xclient(self, reply: Reply) -> None:
        if reply.positive:
            # It has gone back to its greeting (Postfix XCLIENT_README) and must hear the name again.
            self._xclient = None
            self._ask(self._hello, self._on_helo if self._hello[:1] in b"hH" else self._on_ehlo)
        else:
            # It refuses this client. The attributes are kept: no later command gets past this.
            self._pass_on(reply)

    def _on_auth(self, reply: Reply) -> None:
        if reply.code == _AUTH_CONTINUES:
            self._phase = _Phase.AUTH
            self._say(reply.encode())
        else:
            self._pass_on(reply)

    def _on_rset(self, reply: Reply) -> None:
        if reply.positive:
            self._forget_envelope()
        self._pass_on(reply)

    def _on_quit(self, reply: Reply) -> None:
        self._close(reply.encode(), linger=False)

    def _on_own_rset(self, reply: Reply) -> None:
        # A next hop that keeps the old envelope could send the next message to its recipients.
        if not reply.positive:
            self._break_off(f"answered RSET with {_show(reply)}")

    def _on_own_noop(self, reply: Reply) -> None:
        if reply.code == _CLOSING:
            self._break_off(f"answered NOOP with {_show(reply)}")

    # ---- the end ------------------------------------------------------------------------------

    def _lost_reply(self) -> bytes:
        return replies.NEXT_HOP_LOST if self._greeted else replies.NEXT_HOP_UNREACHABLE

    def _break_off(self, what_it_did: str) -> None:
        """Give a next hop up that cannot be understood any more."""
        self._add(Note(f"next hop {what_it_did}"))
        self._lose_server(replies.NEXT_HOP_CONFUSED)

    def _lose_server(self, reply: bytes) -> None:
        """Go on without a next hop: read a message to its end, but say 4xx to it, and close with 421."""
        self._server_gone = True
        self._owed.clear()
        self._add(CloseServer(abort=self._phase is _Phase.TRANSMISSION))
        if self._phase is _Phase.DATA:
            self._failure = self._failure or replies.NEXT_HOP_LOST_MESSAGE
            self._discard()
        elif self._phase is _Phase.VERDICT:
            self._carry_out()
        else:
            if self._phase in (_Phase.TRANSMISSION, _Phase.FINAL_REPLY):
                self._say(replies.NEXT_HOP_LOST_MESSAGE)
            self._close(reply)

    def _close(self, reply: bytes | None = None, *, linger: bool = True) -> None:
        """End the dialogue on both sides; ``reply`` is the last thing that the client hears."""
        if self._phase is _Phase.CLOSED:
            return
        if reply is not None:
            self._say(reply)
        self._discard()
        if not self._server_gone:
            self._add(CloseServer(abort=self._phase is _Phase.TRANSMISSION))
        self._add(CloseClient(linger))
        self._phase = _Phase.CLOSED
        self._owed.clear()

    def _discard(self) -> None:
        if self._stored:
            self._stored = False
            self._add(Discard())

    def _forget_envelope(self) -> None:
        """Return to the state after EHLO (RFC 5321 section 4.1.1.5)."""
        self._transaction = False
        self._sender = b""
        self._recipients = []
        # Postfix sends XFORWARD anew for each message and forgets it with the envelope.
        self._remote = {}

    def _envelope(self) -> Envelope:
        return Envelope(
            sender=self._sender,
            recipients=tuple(self._recipients),
            remote=self._remote.get(b"ADDR"),
            remote_helo=self._remote.get(b"HELO"),
        )

    def _say(self, reply: bytes) -> None:
        self._said_421 = reply.startswith(b"421")
        self._add(ToClient(reply))

    def _add(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # Verbs that are not here are unknown. That, too, is an allow-list: a verb that opened another way for
    # a message would lead it past the scanner.
    _HANDLERS: ClassVar[dict[bytes, Callable[[Relay, bytes, bytes], None]]] = {
        b"HELO": _do_helo,
        b"EHLO": _do_ehlo,
        b"MAIL": _do_mail,
        b"RCPT": _do_rcpt,
        b"DATA": _do_data,
        b"RSET": _do_rset,
        b"QUIT": _do_quit,
        b"AUTH": _do_auth,
        b"XFORWARD": _do_xforward,
        b"NOOP": _do_plain,
        b"VRFY": _do_plain,
        b"EXPN": _do_plain,
        b"HELP": _do_plain,
        b"ETRN": _do_plain,
        b"XCLIENT": _do_xclient,
        b"BDAT": _do_bdat,
        b"BURL": _do_unavailable,
        b"STARTTLS": _do_unavailable,
        b"XEXCH50": _do_unavailable,
        b"SEND": _do_unavailable,
        b"SOML": _do_unavailable,
        b"SAML": _do_unavailable,
        b"TURN": _do_unavailable,
        b"ATRN": _do_unavailable,
    }


def _show(reply: Reply) -> str:
    return f"{reply.code} {reply.lines[-1].decode('latin-1')}"
