"""The dialogue between a client and the next hop, as one state machine without I/O.

Octets of both sides and decisions go in, effects come out. Every transition is in this file.

A queue holds, for each command that the next hop still owes a reply for, what becomes of that reply:
most go to the client, those to our own RSET, NOOP, XCLIENT and XFORWARD do not. Nothing is sent while a reply is
owed, but for the commands that may be pipelined (RFC 2920 section 3.1) to a next hop that takes that. Our own replies
are made only when nothing is owed. So replies cannot overtake each other, whatever the client
pipelines, and no 250 can be taken for another command's.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import ClassVar, NamedTuple

from clamsmtpd.smtp import replies
from clamsmtpd.smtp.body import Stuffing
from clamsmtpd.smtp.capabilities import Offers, filter_ehlo
from clamsmtpd.smtp.events import (
    Answered,
    Awaits,
    BeginMessage,
    CloseClient,
    CloseServer,
    Discard,
    Effect,
    Identify,
    Inspect,
    Note,
    Reconnect,
    SecureClient,
    SecureServer,
    Store,
    ToClient,
    ToServer,
    Transmit,
)
from clamsmtpd.smtp.identity import Identity, IdentityError
from clamsmtpd.smtp.message import Message
from clamsmtpd.smtp.syntax import (
    AUTH_LINE_MAX,
    COMMAND_LINE_MAX,
    CommandLines,
    Malformed,
    Refused,
    Reply,
    ReplyReader,
    has_parameter,
    parse_chunk,
    parse_command,
    parse_path,
    parse_xforward,
)
from clamsmtpd.values import Bounce, Decision, Defer, Deliver, Drop, Envelope, Ground, Insertion, OutTls

__all__ = ["ERRORS_MAX", "INPUT_MAX", "OUTSTANDING_MAX", "Relay", "Terms", "reply_to"]

#: Commands in a row that we refuse ourselves before the client is told 421. The next hop, which has a limit
#: of its own, sees none of them.
ERRORS_MAX = 100

#: Octets from the client that may wait in memory while it is not its turn.
INPUT_MAX = 65536

#: Replies that the next hop may owe us at once. More would only wait in the connection, and in our memory
#: if the client does not read them.
OUTSTANDING_MAX = 100

# Gets a reply, and the argument of the command that it is for, where that matters.
_OnReply = Callable[[Reply, bytes], None]

# Reply codes that change the course of the dialogue (RFC 5321 section 4.2.3, RFC 4954 section 4).
_READY = 220
_AUTHENTICATED = 235
_AUTH_CONTINUES = 334
_START_INPUT = 354
_CLOSING = 421
_BAD_SEQUENCE = 503


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settings say about a dialogue.

    ``lmtp_client``, ``lmtp_server``: that side speaks LMTP. ``announce``: tell the next hop who the client is by
    XCLIENT. ``trusted``: the client may say by XCLIENT who it is. ``starttls``: there is a certificate to offer TLS
    with. ``admits`` tells whether a message that comes now can be judged in time.
    """

    lmtp_client: bool = False
    lmtp_server: bool = False
    announce: bool = False
    trusted: bool = False
    starttls: bool = False
    out_tls: OutTls = OutTls.OFF
    admits: Callable[[], bool] = _always

    @property
    def one_recipient(self) -> bool:
        """Whether a message may have one recipient only.

        LMTP gives a verdict for each recipient, and SMTP has room for one: were the message taken for one recipient
        and not for another, no reply would be true, and one of them would get it twice or never.
        """
        return self.lmtp_server and not self.lmtp_client


class _Phase(enum.Enum):
    """What the client's next octets are, or what keeps it waiting."""

    PREPARING = (0, Awaits.GREETING)
    COMMAND = (1, None)
    AUTH = (2, None)
    CHUNK = (3, Awaits.DATA)
    DATA = (4, Awaits.DATA)
    VERDICT = (5, Awaits.VERDICT)
    TRANSMISSION = (6, Awaits.TRANSMISSION)
    FINAL_REPLY = (7, Awaits.FINAL_REPLY)
    HANDSHAKE = (8, Awaits.HANDSHAKE)
    CLOSED = (9, Awaits.NOTHING)

    def __init__(self, _number: int, awaits: Awaits | None) -> None:
        #: Whose move it is in this phase; None where it depends on what the next hop owes us.
        self.awaits = awaits


# Names of the module: to find a member in its class costs several times as much, and this is asked at every step.
_PREPARING = _Phase.PREPARING
_COMMAND = _Phase.COMMAND
_AUTH = _Phase.AUTH
_CHUNK = _Phase.CHUNK
_DATA = _Phase.DATA
_VERDICT = _Phase.VERDICT
_TRANSMISSION = _Phase.TRANSMISSION
_FINAL_REPLY = _Phase.FINAL_REPLY
_HANDSHAKE = _Phase.HANDSHAKE
_CLOSED = _Phase.CLOSED

# Ways for a message, or for the connection, past the scanner: known, and never passed on.
_KNOWN = frozenset({b"BURL", b"XEXCH50", b"SEND", b"SOML", b"SAML", b"TURN", b"ATRN"})


class _Command(NamedTuple):
    """A verb: how it is carried out, and what may stand in its way.

    ``object_to`` returns our own refusal, or nothing. ``before_hello``: it may come before the client has introduced
    itself; that is nothing in which the next hop would mistake our address for the client's (setting XClient), and
    nothing that was agreed on before TLS or XCLIENT. ``grouped``: it may be pipelined without an end to it (RFC 2920
    section 3.1, Postfix XFORWARD_README). ``between_chunks``: it makes sense between the chunks of a message (RFC
    3030 section 2); for the next hop, the message has not begun yet, so that it would see nothing wrong in any.
    """

    carry_out: Callable[[Relay, bytes, bytes], None]
    object_to: Callable[[Relay, bytes], bytes] | None = None
    before_hello: bool = False
    grouped: bool = False
    between_chunks: bool = True


class Relay:
    """One client, one next hop, from greeting to close.

    ``identity`` is who the client is, as far as its connection tells. Each method returns the effects to perform,
    in order.
    """

    __slots__ = (
        "_announced",
        "_announcing",
        "_authenticated",
        "_binary",
        "_chunk_last",
        "_chunk_left",
        "_chunk_length",
        "_chunk_refusal",
        "_client_full",
        "_client_gone",
        "_decision",
        "_draining",
        "_effects",
        "_errors",
        "_extended",
        "_forwarded",
        "_forwarding",
        "_grouped",
        "_held",
        "_hello",
        "_hello_due",
        "_hop_hello",
        "_identity",
        "_input",
        "_input_ended",
        "_message",
        "_offers",
        "_one_recipient",
        "_owed",
        "_phase",
        "_plain",
        "_reader",
        "_recipients",
        "_remote",
        "_said_421",
        "_secure",
        "_sender",
        "_server_gone",
        "_stored",
        "_taken",
        "_terms",
        "_transaction",
        "_unanswered",
        "steps",
    )

    def __init__(self, terms: Terms | None = None, identity: Identity | None = None) -> None:
        #: Counts complete commands and replies, so that a clock can tell progress from dribble.
        self.steps = 0
        self._terms = terms = terms or Terms()
        self._one_recipient = terms.one_recipient
        self._identity = identity or Identity()
        self._effects: list[Effect] = []
        self._phase = _PREPARING
        self._draining = False
        self._client_gone = False
        self._client_full = False
        self._server_gone = False
        self._said_421 = False
        # The client's input, and a line of it whose turn has not come.
        self._input = CommandLines()
        self._input_ended = False
        self._held: bytes | Refused | None = None
        self._errors = 0
        # The next hop: what it owes, what it offers, whether TLS with it has failed.
        self._reader = ReplyReader()
        self._owed: deque[tuple[_OnReply, bytes]] = deque([(self._on_greeting, b"")])
        self._grouped = False
        self._offers = Offers()
        self._plain = False
        # The client's introduction, and what has been told of it.
        self._hello = b""
        self._extended = False
        self._hello_due = terms.announce
        # The next hop's last good answer to it.
        self._hop_hello: Reply | None = None
        self._announced = not terms.announce
        self._announcing: deque[bytes] = deque()
        self._forwarded = False
        self._forwarding: list[bytes] | None = None
        self._secure = False
        self._authenticated = False
        # The transaction; of sender and recipients, the arguments of MAIL and RCPT.
        self._transaction = False
        self._binary = False
        self._sender = b""
        self._recipients: list[bytes] = []
        self._remote: dict[bytes, bytes | None] = {}
        # The message.
        self._message: Message | None = None
        self._stored = False
        self._decision: Decision | None = None
        self._unanswered = 0
        # Recipients for whom the next hop has taken the message at hand.
        self._taken = 0
        self._chunk_length = 0
        self._chunk_left = 0
        self._chunk_last = False
        self._chunk_refusal = b""

    # ---- what the session may ask -------------------------------------------------------------

    @property
    def awaits(self) -> Awaits:
        """Whose move it is now."""
        awaits = self._phase.awaits
        if awaits is not None and (awaits is not Awaits.VERDICT or self._decision is None):
            return awaits
        return Awaits.REPLY if self._owed else Awaits.COMMAND

    @property
    def wants_input(self) -> bool:
        """Whether to go on reading from the client; false is backpressure."""
        if not self._input.pending:
            # What comes between STARTTLS and the handshake is for the handshake to read.
            return self._phase is not _HANDSHAKE
        # A client that has been told all may be throwing words at us still, and must see them taken.
        return len(self._input) < INPUT_MAX or self._phase is _CLOSED

    @property
    def size_limit(self) -> int | None:
        """The octets that a message may have for the next hop (RFC 1870); None for any number, or if it did not say."""
        return self._offers.size

    @property
    def in_auth(self) -> bool:
        """Whether the client's next line is part of an AUTH dialogue."""
        return self._phase is _AUTH

    # ---- the short way ------------------------------------------------------------------------

    def passes_on(self, data: bytes) -> bool:
        """Take ``data`` from the client if it is one command that goes to the next hop as it stands; tell whether.

        Then it is to be sent there, and nothing else is to be done. If not, it is for :meth:`client_data`, which would
        have come to the same by a longer way: two commands of three are MAIL or RCPT of a client that has waited for
        its turn.
        """
        if (
            self._owed
            or self._phase is not _COMMAND
            or self._hello_due
            or self._message is not None
            or self._input.refusing
            or self._has_work()
            or not _is_one_line(data, COMMAND_LINE_MAX)
        ):
            return False
        verb, argument = data[:5], data[5:-2].strip(b" \t")
        if verb == b"RCPT ":
            if self._one_recipient:
                return False
            self._owed.append((self._on_rcpt, argument))
        elif verb == b"MAIL ":
            if self._identity.learnt or has_parameter(argument, b"BODY=BINARYMIME"):
                return False
            self._owed.append((self._on_mail, argument))
        else:
            return False
        self.steps += 1
        self._errors = 0
        self._grouped = self._offers.pipelining and not self._one_recipient
        return True

    def passes_back(self, data: bytes) -> bool:
        """Take ``data`` from the next hop if it is one reply that goes to the client as it stands; tell whether.

        Like :meth:`passes_on`, for the good replies to what that lets pass. If not, it is for :meth:`server_data`.
        """
        if (
            len(self._owed) != 1
            or self._phase is not _COMMAND
            or self._reader
            or self._has_work()
            or not _is_one_line(data, COMMAND_LINE_MAX)
            or _GOOD_REPLY.match(data) is None
        ):
            return False
        on_reply, argument = self._owed[0]
        if on_reply == self._on_rcpt:
            self._recipients.append(argument)
        elif on_reply == self._on_mail:
            self._begin_transaction(argument)
        else:
            return False
        self._owed.clear()
        self.steps += 1
        return True

    def _has_work(self) -> bool:
        """Whether something waits that any event may bring on."""
        return bool(
            self._input.pending
            or self._held is not None
            or self._input_ended
            or self._client_full
            or self._draining
            or self._server_gone
        )

    # ---- events -------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> list[Effect]:
        """Take octets from the client."""
        if self._phase is not _CLOSED:
            self._input.feed(data)
            self._read_client()
        effects, self._effects = self._effects, []
        return effects

    def client_eof(self) -> list[Effect]:
        """Learn that the client will send nothing more, though it may still read.

        A client that hangs up, tired of waiting for the reply to its message, looks the same as one
        that has said all it had to say. Only the latter leaves a command, such as QUIT, behind its
        message. The former will send the message again, so that it must not be delivered now.
        """
        self._input_ended = True
        undecided = self._phase in (_VERDICT, _TRANSMISSION)
        if undecided and not self._input.pending:
            self._effects.append(Note("client left before the reply to its message; nothing delivered"))
            self._close(replies.CLIENT_LEFT)
        elif self._phase is _PREPARING and not self._input.pending:
            # It has said nothing, and waits for nothing.
            self._close(linger=False)
        else:
            self._read_client()
        return self._take_effects()

    def client_secured(self) -> list[Effect]:
        """Learn that TLS with the client is in use: all that comes from now on has come through it."""
        if self._phase is _HANDSHAKE:
            self.steps += 1
            self._phase = _COMMAND
            self._secure = True
            # RFC 3207 section 4.2: nothing that was said before counts any more.
            self._hello_due = True
            self._forget_envelope()
            self._read_client()
        return self._take_effects()

    def server_secured(self) -> list[Effect]:
        """Learn that TLS with the next hop is in use."""
        if self._phase is _PREPARING:
            self.steps += 1
            self._greet()
        return self._take_effects()

    def server_insecure(self, reason: str) -> list[Effect]:
        """Learn that the TLS handshake with the next hop has failed."""
        if self._phase is _PREPARING:
            self._effects.append(Note("next hop: TLS handshake failed: %s", (reason,)))
            if self._terms.out_tls is OutTls.MAY:
                self._plain = True
                self._reader = ReplyReader()
                self._owed.append((self._on_greeting, b""))
                self._effects.append(Reconnect())
            else:
                self._close(replies.NEXT_HOP_INSECURE)
        return self._take_effects()

    def client_full(self, *, full: bool) -> list[Effect]:
        """Learn that the client does not take its replies, or takes them again: no command is begun meanwhile."""
        self._client_full = full
        self._read_client()
        return self._take_effects()

    def client_lost(self) -> list[Effect]:
        """Learn that nothing can be said to the client any more."""
        self._client_gone = self._input_ended = True
        # Before the final dot, closing undoes the delivery. After it, only the next hop's reply can
        # tell the log what became of the message, so that one is waited for.
        if self._phase is not _FINAL_REPLY:
            self._close()
        return self._take_effects()

    def server_data(self, data: bytes) -> list[Effect]:
        """Take octets from the next hop."""
        self._reader.feed(data)
        self._read_server()
        effects, self._effects = self._effects, []
        return effects

    def server_lost(self, reason: str, *arguments: str) -> list[Effect]:
        """Learn that the connection to the next hop is gone, or never came about.

        ``reason`` is what the log says of it, a format for ``arguments``.
        """
        if self._phase is not _CLOSED and not self._server_gone:
            self._effects.append(Note(f"next hop: {reason}", arguments))
            self._lose_server(self._lost_reply())
        return self._take_effects()

    def refuse(self, reply: bytes) -> list[Effect]:
        """End the dialogue with ``reply``: the session has found a reason that is not in the dialogue."""
        self._close(reply)
        return self._take_effects()

    def storage_failed(self) -> list[Effect]:
        """Learn that the spool could not take the text: read the rest of the message, keep nothing."""
        self._fail(replies.CANNOT_STORE)
        if self.awaits is Awaits.VERDICT:
            # It was the last of the text, and nobody will judge what is not there.
            self._decision = Defer()
            self._carry_out()
            self._read_client()
        return self._take_effects()

    def decide(self, decision: Decision) -> list[Effect]:
        """Take the decision about the message that the last ``Inspect`` handed over."""
        if self._phase is _VERDICT:
            self.steps += 1
            self._decision = decision
            self._carry_out()
            self._read_client()
        return self._take_effects()

    def transmitted(self) -> list[Effect]:
        """Learn that the text and the final dot have been handed to the connection."""
        if self._phase is _TRANSMISSION:
            self._phase = _FINAL_REPLY
            self.steps += 1
        return self._take_effects()

    def keep_alive(self) -> list[Effect]:
        """Keep the next hop awake while a message is received and scanned (setting KeepAlives)."""
        waiting = self.awaits in (Awaits.DATA, Awaits.VERDICT, Awaits.COMMAND)
        if waiting and self._message is not None and not self._owed and not self._server_gone:
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
        elif awaited is Awaits.HANDSHAKE:
            self._close(linger=False)
        elif awaited not in (Awaits.VERDICT, Awaits.NOTHING):
            self._effects.append(Note("timed out waiting for %s", (awaited.value,)))
            self._lose_server(self._lost_reply())
        return self._take_effects()

    # ---- the client's commands ----------------------------------------------------------------

    def _read_client(self) -> None:
        """Work through the client's octets for as long as it is its turn."""
        lines = self._input
        while True:
            phase = self._phase
            if phase is _COMMAND or phase is _AUTH:
                if not (lines.pending or self._held is not None or self._draining):
                    break
                # Behind commands that the next hop has not answered, only such as may be pipelined.
                if self._owed and not (self._grouped and len(self._owed) < OUTSTANDING_MAX):
                    break
                # Each command makes a reply, which would wait in memory.
                if self._client_full or not self._read_line():
                    break
            elif phase is _DATA:
                if not lines.pending:
                    break
                self._read_text()
            elif phase is _CHUNK:
                if self._chunk_left and not lines.pending:
                    break
                self._read_chunk()
            else:
                break
        # All input has been used, and there will be no more: not of a command, nor of a text.
        if self._input_ended and not self._client_full and self.awaits in (Awaits.COMMAND, Awaits.DATA):
            self._close(linger=False)

    def _read_line(self) -> bool:
        """Take the client's next command; false when there is none, or when it has to wait."""
        if self._draining and not self._transaction and not self._owed:
            self._close(replies.SHUTTING_DOWN)
            return False
        in_auth = self._phase is _AUTH
        line, self._held = self._held, None
        if line is None:
            line = self._input.next(AUTH_LINE_MAX if in_auth else COMMAND_LINE_MAX)
            if line is None:
                return False
            self.steps += 1
        if in_auth:
            self._phase = _COMMAND
            # A line that must not be passed on cancels the dialogue, as the client itself may do
            # (RFC 4954 section 4). What the next hop says to that is the one reply to it.
            self._ask(b"*\r\n" if isinstance(line, Refused) else line + b"\r\n", self._on_auth, secret=True)
            return True
        if not isinstance(line, Refused):
            return self._dispatch(line)
        if self._owed:
            self._held = line
            return False
        self._refuse(replies.COMMAND_TOO_LONG if line.too_long else replies.FORBIDDEN_OCTET)
        return True

    def _dispatch(self, line: bytes) -> bool:
        """Carry a command out; false when its turn has not come, because it cannot be pipelined."""
        verb, argument = parse_command(line)
        command = self._COMMANDS.get(verb)
        if command is None:
            objection = replies.COMMAND_REFUSED if verb in _KNOWN else replies.COMMAND_UNKNOWN
        elif self._hello_due and not command.before_hello:
            objection = replies.HELLO_FIRST
        elif self._message is not None and not command.between_chunks:
            objection = replies.CHUNKS_BEGUN
        else:
            objection = command.object_to(self, argument) if command.object_to is not None else b""
        if self._owed and (objection or command is None or not command.grouped):
            self._held = line
            return False
        if objection or command is None:
            self._refuse(objection)
        else:
            command.carry_out(self, line + b"\r\n", argument)
        return True

    def _objection_to_hello(self, _argument: bytes) -> bytes:
        return replies.WRONG_HELLO if self._terms.lmtp_client else b""

    def _objection_to_lhlo(self, _argument: bytes) -> bytes:
        return b"" if self._terms.lmtp_client else replies.WRONG_HELLO

    def _objection_to_mail(self, argument: bytes) -> bytes:
        if has_parameter(argument, b"BODY=BINARYMIME") and not self._offers.binarymime:
            return replies.BINARY_NOT_AVAILABLE
        return b""

    def _objection_to_data(self, argument: bytes) -> bytes:
        if argument:
            return replies.ARGUMENT_NOT_ALLOWED
        return self._objection_to_text() or (replies.BINARY_NEEDS_BDAT if self._binary else b"")

    def _objection_to_text(self) -> bytes:
        """Return what is wrong with a message now, whether it comes by DATA or by BDAT."""
        if not self._transaction:
            return replies.MAIL_FIRST
        if not self._recipients:
            return replies.NO_RECIPIENTS_LMTP if self._terms.lmtp_client else replies.NO_RECIPIENTS
        if self._message is None and not self._terms.admits():
            return replies.TURNED_AWAY
        return b""

    def _objection_to_starttls(self, argument: bytes) -> bytes:
        if not self._terms.starttls:
            return replies.COMMAND_REFUSED
        if argument:
            return replies.ARGUMENT_NOT_ALLOWED
        return replies.ALREADY_SECURE if self._secure else self._objection_to_start()

    def _objection_to_xclient(self, _argument: bytes) -> bytes:
        return self._objection_to_start() if self._terms.trusted else replies.XCLIENT_REFUSED

    def _objection_to_start(self) -> bytes:
        """Object to what takes the dialogue back to its start: the next hop would go on in the midst of it."""
        return replies.IN_TRANSACTION if self._transaction or self._authenticated else b""

    def _refuse(self, reply: bytes) -> None:
        """Refuse a command that the next hop does not get to see."""
        self._errors += 1
        if self._errors > ERRORS_MAX:
            self._close(replies.TOO_MANY_ERRORS)
        else:
            self._say(reply)

    def _do_plain(self, line: bytes, _argument: bytes) -> None:
        self._ask(line, self._pass_on)

    def _do_helo(self, line: bytes, argument: bytes) -> None:
        self._introduce(line, argument, extended=False)

    def _do_ehlo(self, line: bytes, argument: bytes) -> None:
        self._introduce(line, argument, extended=True)

    def _introduce(self, line: bytes, name: bytes, *, extended: bool) -> None:
        self._abandon_chunks()
        self._hello = name
        self._extended = extended
        if not self._announced:
            # Only EHLO tells whether the next hop offers XCLIENT.
            self._ask(self._greeting_verb(extended=True) + line[4:], self._on_hello_for_xclient)
        else:
            self._repeat_hello()

    def _greeting_verb(self, *, extended: bool) -> bytes:
        if self._terms.lmtp_server:
            return b"LHLO"
        return b"EHLO" if extended else b"HELO"

    def _repeat_hello(self) -> None:
        """Introduce the client to the next hop."""
        verb = self._greeting_verb(extended=self._extended)
        self._ask(b"%b %b\r\n" % (verb, self._hello) if self._hello else verb + b"\r\n", self._on_hello)

    def _do_mail(self, line: bytes, argument: bytes) -> None:
        if self._forward_first():
            # Its turn comes behind our own command: at once if the next hop takes pipelining.
            self._held = line.removesuffix(b"\r\n")
            return

        self._ask(line, self._on_mail, argument, grouped=True)

    def _forward_first(self) -> bool:
        """Tell the next hop's log by XFORWARD who the client is, if we have learnt it; tell whether a command was sent.

        Not if the client sends an XFORWARD of its own, nor if XCLIENT has told already.
        """
        if not self._identity.learnt:
            return False
        if self._forwarding is None:
            wanted = not self._forwarded and not self._terms.announce
            protocol = b"ESMTP" if self._extended else b"SMTP"
            lines = self._identity.xforward(self._offers.xforward, helo=self._hello, protocol=protocol)
            self._forwarding = lines if wanted else []
        if not self._forwarding:
            return False
        self._ask(self._forwarding.pop(0), self._on_own_xforward, grouped=True)
        return True

    def _do_rcpt(self, line: bytes, argument: bytes) -> None:
        if self._one_recipient and self._recipients:
            # No error of the client's: it is asked to take it up again later.
            self._say(replies.ONE_RECIPIENT)
            return

        self._ask(line, self._on_rcpt, argument, grouped=True)

    def _do_data(self, _line: bytes, _argument: bytes) -> None:
        self._begin_message(Message(limit=self._offers.size))
        self._phase = _DATA
        self._say(replies.START_INPUT)

    def _do_bdat(self, _line: bytes, argument: bytes) -> None:
        chunk = parse_chunk(argument)
        if chunk is None:
            # RFC 3030 section 2: the octets follow the command without waiting for a reply. If their
            # number cannot be read, nobody knows where the next command starts.
            self._close(replies.BDAT_LENGTH_UNKNOWN)
            return
        length, last = chunk
        self._phase = _CHUNK
        self._chunk_length = self._chunk_left = length
        self._chunk_last = last is True
        objection = replies.HELLO_FIRST if self._hello_due else self._objection_to_text()
        if last is None:
            objection = replies.BDAT_WITH_MORE
        self._chunk_refusal = objection
        if not self._transaction:
            return
        if self._message is None:
            self._begin_message(Message(chunked=True, raw=self._offers.chunking, limit=self._offers.size))
        if objection:
            # A message must not go on without this chunk, whatever comes behind it.
            self._fail(objection)
        elif self._message is not None and self._message.would_be_too_large(length):
            self._fail(replies.TOO_LARGE)

    def _do_rset(self, line: bytes, _argument: bytes) -> None:
        on_reply = self._on_rset_within_message if self._abandon_chunks() else self._on_rset
        self._forwarding = None
        self._ask(line, on_reply, grouped=True)

    def _do_quit(self, line: bytes, _argument: bytes) -> None:
        self._ask(line, self._on_quit)

    def _do_auth(self, line: bytes, _argument: bytes) -> None:
        self._ask(line, self._on_auth, secret=True)

    def _do_xforward(self, line: bytes, argument: bytes) -> None:
        self._forwarded = True
        self._ask(line, self._on_xforward, argument, grouped=True)

    def _do_starttls(self, _line: bytes, _argument: bytes) -> None:
        # RFC 3207 section 4: commands behind it came in plain text, from whoever was on the way (CVE-2011-0411).
        self._input.take_all()
        self._say(replies.START_TLS)
        self._phase = _HANDSHAKE
        self._effects.append(SecureClient())

    def _do_xclient(self, _line: bytes, argument: bytes) -> None:
        try:
            self._identity = self._identity.taking(argument)
        except IdentityError as error:
            self._refuse(replies.bad_attribute(str(error)))
            return
        # As if it had just connected (Postfix XCLIENT_README).
        self._forget_envelope()
        self._hello_due = True
        self._announced = not self._terms.announce
        self._effects.append(Identify(self._identity))
        self._say(replies.greeting(lmtp=self._terms.lmtp_client))

    def _do_proxy(self, _line: bytes, _argument: bytes) -> None:
        # No SMTP at all, but what every connection of a proxy begins with that nobody here trusts. To go on would
        # take that proxy for the client.
        self._effects.append(
            Note("PROXY protocol from a client that is not among TrustedClients, or without ProxyProtocol: on")
        )
        self._close(replies.PROXY_REFUSED)

    # ---- the message --------------------------------------------------------------------------

    def _begin_message(self, message: Message) -> None:
        self._message = message
        self._decision = None
        self._stored = True
        self._effects.append(BeginMessage(message.raw))

    def _read_text(self) -> None:
        message = self._message
        assert message is not None  # noqa: S101 - what makes the phase DATA makes the message
        text, rest = message.feed(self._input.take_all())
        self._store(message, text)
        if rest is not None:
            self._input.feed(rest)
            self._end_message(message)

    def _read_chunk(self) -> None:
        data = self._input.take(self._chunk_left)
        self._chunk_left -= len(data)
        message = self._message
        if message is not None and not message.failure:
            self._store(message, message.feed_chunk(data))
        if self._chunk_left:
            return
        self._phase = _COMMAND
        if message is None:
            self._refuse(self._chunk_refusal)
        elif self._chunk_last:
            self._store(message, message.finish_chunks())
            self._end_message(message)
        else:
            self.steps += 1
            self._say(message.failure or replies.chunk_taken(self._chunk_length))
            if message.failure:
                message.failure = replies.CHUNK_REFUSED_BEFORE
        if self._server_gone and self._phase is _COMMAND:
            self._close(replies.NEXT_HOP_LOST)

    def _store(self, message: Message, text: bytes) -> None:
        if message.failure or not text:
            return
        if message.too_large:
            self._fail(replies.TOO_LARGE)
        else:
            self._effects.append(Store(text))

    def _fail(self, reply: bytes) -> None:
        """Give up the message at hand, with the first reason there is, and read the rest of it."""
        message = self._message
        if message is not None:
            message.failure = message.failure or reply
        self._discard()

    def _end_message(self, message: Message) -> None:
        """Have a message judged that is whole, or answer for one that cannot be taken."""
        self.steps += 1
        self._phase = _VERDICT
        # RFC 2033 section 4.2: LMTP answers for each recipient, and for BDAT LAST as for the final dot.
        self._unanswered = max(len(self._recipients), 1) if self._terms.lmtp_client else 1
        self._taken = 0
        if message.deceptive and not message.failure:
            self._effects.append(Note("message refused: a dot stands between line ends that are not CRLF"))
            message.failure = replies.DECEPTIVE_END
        if message.failure:
            self._decision = Defer()
            self._carry_out()
        else:
            self._effects.append(Inspect(self._envelope(), message.stuffed, message.header_reach))

    def _carry_out(self) -> None:
        """Do what was decided about the message, once the next hop owes us nothing."""
        decision, message = self._decision, self._message
        if self._phase is not _VERDICT or decision is None or message is None or self._owed:
            return
        if message.failure:
            self._finish_message(message.failure)
        elif not isinstance(decision, Deliver):
            self._finish_message(reply_to(decision))
        elif self._server_gone:
            self._finish_message(replies.NEXT_HOP_LOST_MESSAGE)
        elif message.raw:
            # One chunk: the next hop has the whole message or nothing of it (RFC 3030 section 2).
            self._errors = 0
            self._transmit(message, decision)
        else:
            self._ask(b"DATA\r\n", self._on_data)

    def _transmit(self, message: Message, decision: Deliver) -> None:
        field, others = decision.field, decision.insertions
        if field and message.header.blank_first:
            field += b"\r\n"
            # Behind that empty line, all that came is body text, where nothing is changed.
            others = ()
        offset = message.header.top if decision.on_top else message.header.end
        insertions: tuple[Insertion, ...] = ((offset, field if message.raw else Stuffing().feed(field)),)
        if others:
            # Ours comes first of two at the same place: the other belongs to the line behind.
            insertions = tuple(sorted((*insertions, *others), key=itemgetter(0)))
        self._phase = _TRANSMISSION
        self._owed.extend([(self._on_final_reply, b"")] * (len(self._recipients) if self._terms.lmtp_server else 1))
        if message.raw:
            length = message.length + sum(len(octets) for _, octets in insertions)
            self._effects.append(Transmit(insertions, b"BDAT %d LAST\r\n" % length, b""))
        else:
            self._effects.append(Transmit(insertions))

    def _answer(self, reply: bytes, *, taken: int | None = None) -> None:
        """Say the reply to the whole message, to as many recipients as have none yet; ``taken`` as in Answered."""
        self._say(reply * self._unanswered)
        self._unanswered = 0
        self._effects.append(Answered(reply, taken))

    def _finish_message(self, reply: bytes, *, taken: int | None = None) -> None:
        """Give the client its reply about a message of which the next hop took no text."""
        self._answer(reply, taken=taken)
        self._end_transaction()
        if self._server_gone:
            self._close(replies.NEXT_HOP_LOST)
        else:
            self._ask(b"RSET\r\n", self._on_own_rset)

    def _end_transaction(self) -> None:
        self._discard()
        self._message = None
        self._phase = _COMMAND
        self._forget_envelope()

    def _on_data(self, reply: Reply, _argument: bytes = b"") -> None:
        """Take the answer to DATA for a message that is to be delivered."""
        decision, message = self._decision, self._message
        if reply.code == _START_INPUT and isinstance(decision, Deliver) and message is not None:
            self._transmit(message, decision)
        elif reply.negative:
            self._effects.append(Note("next hop refused DATA: %s", (_show(reply),)))
            self._finish_message(reply.encode(), taken=0)
        else:
            # RFC 5321 section 4.3.2: only 354 asks for the text.
            self._break_off("next hop answered DATA with %s", _show(reply))

    def _on_final_reply(self, reply: Reply, _argument: bytes = b"") -> None:
        """Take an answer to the whole message: the one of SMTP, or one of LMTP's."""
        early = self._phase is _TRANSMISSION
        if not reply.negative and (early or not reply.positive):
            if early:
                self._break_off("next hop answered %s before the end of a message", _show(reply))
            else:
                self._break_off("next hop answered %s to the end of a message", _show(reply))
            return
        if reply.negative:
            self._effects.append(Note("next hop refused the message: %s", (_show(reply),)))
        if self._owed and not early:
            # There is one more of them for each recipient, and so there is for the client.
            self._say(reply.encode())
            self._unanswered -= 1
            self._taken += reply.positive
            return
        self._answer(reply.encode(), taken=self._taken + reply.positive)
        if early or self._client_gone:
            # Refused while the text was still going out: whatever we send next could be read as text.
            self._close(None if self._client_gone or self._said_421 else replies.NEXT_HOP_LOST)
        else:
            self._end_transaction()

    # ---- the next hop's replies ---------------------------------------------------------------

    def _ask(
        self, command: bytes, on_reply: _OnReply, argument: bytes = b"", *, secret: bool = False, grouped: bool = False
    ) -> None:
        """Send a command to the next hop; ``on_reply`` gets the reply, and ``argument``.

        ``grouped``: others of its kind may be sent before the reply comes, if the next hop takes that. Otherwise
        nothing is owed when it is sent, and nothing is sent until its reply is here.
        """
        self._errors = 0
        self._grouped = grouped and self._offers.pipelining and not self._one_recipient
        self._owed.append((on_reply, argument))
        self._effects.append(ToServer(command, secret))

    def _read_server(self) -> None:
        reader = self._reader
        while self._phase is not _CLOSED and not self._server_gone:
            reply = reader.next()
            if reply is None:
                break
            if isinstance(reply, Malformed):
                text = reply.text.decode("latin-1")
                hint = "; that is clamd, not an SMTP server" if reply.text.startswith(_CLAMD_HAS_WAITED) else ""
                self._break_off("next hop sent what is no SMTP reply: %s%s", text, hint)
                break
            self.steps += 1
            if self._owed:
                on_reply, argument = self._owed.popleft()
                on_reply(reply, argument)
                if reply.code == _CLOSING and not self._server_gone:
                    # RFC 5321 section 3.8: it closes behind this reply, and so must we.
                    self._close(None if self._said_421 else replies.NEXT_HOP_LOST)
            elif reply.code == _CLOSING:
                self._effects.append(Note("next hop closed the dialogue: %s", (_show(reply),)))
                self._lose_server(reply.encode())
            else:
                # From here on, every reply would be taken for another command's.
                self._break_off("next hop sent a reply that nobody asked for: %s", _show(reply))
            if not reader.ready:
                break
        if self._phase is _VERDICT:
            self._carry_out()
        self._read_client()

    def _pass_on(self, reply: Reply, _argument: bytes = b"") -> None:
        if not reply.intermediate:
            self._say(reply.encode())
        else:
            # 3yz asks for input that the command had no room for.
            self._break_off("next hop asked for more with %s", _show(reply))

    def _on_greeting(self, reply: Reply, _argument: bytes = b"") -> None:
        if reply.negative:
            self._close(reply.encode())
        elif reply.code != _READY:
            self._break_off("next hop greeted with %s", _show(reply))
        elif self._terms.out_tls is OutTls.OFF or self._plain:
            self._greet()
        else:
            verb = self._greeting_verb(extended=True)
            self._ask(b"%b %b\r\n" % (verb, replies.NAME), self._on_own_hello)

    def _on_own_hello(self, reply: Reply, _argument: bytes = b"") -> None:
        if reply.positive and Offers.read(reply.lines).starttls:
            self._ask(b"STARTTLS\r\n", self._on_starttls)
        else:
            self._go_without_tls("next hop does not offer STARTTLS")

    def _on_starttls(self, reply: Reply, _argument: bytes = b"") -> None:
        if reply.code != _READY:
            self._go_without_tls("next hop refused STARTTLS: %s", _show(reply))
        elif self._reader:
            # Replies that came in plain text, from whoever is on the way, and would be taken for those to come.
            self._break_off("next hop sent something behind its reply to STARTTLS")
        else:
            self._effects.append(SecureServer())

    def _go_without_tls(self, what_it_did: str, *arguments: str) -> None:
        if self._terms.out_tls is OutTls.MAY:
            self._greet()
        else:
            self._effects.append(Note(what_it_did, arguments))
            self._close(replies.NEXT_HOP_INSECURE)

    def _greet(self) -> None:
        """Let the dialogue begin: the next hop is ready."""
        self._phase = _COMMAND
        self._say(replies.greeting(lmtp=self._terms.lmtp_client))
        self._read_client()

    def _on_hello(self, reply: Reply, _argument: bytes = b"") -> None:
        if reply.positive:
            self._hop_hello = reply
            self._welcome(reply)
        elif reply.code == _BAD_SEQUENCE and self._hop_hello is not None:
            # RFC 5321 section 4.1.4 lets a client repeat its EHLO, as it must behind STARTTLS. OpenSMTPD has none
            # of it; what RSET does is the rest of what EHLO would have done.
            self._ask(b"RSET\r\n", self._on_rset_for_hello)
        else:
            self._pass_on(reply)

    def _on_rset_for_hello(self, reply: Reply, _argument: bytes = b"") -> None:
        self._on_own_rset(reply)
        if reply.positive and self._hop_hello is not None:
            self._welcome(self._hop_hello)

    def _welcome(self, reply: Reply) -> None:
        """Answer the client's introduction, to which ``reply`` was the next hop's answer."""
        self._forget_envelope()
        self._hello_due = False
        extended = self._extended or self._terms.lmtp_server
        self._offers = Offers.read(reply.lines) if extended else Offers()
        if not self._extended:
            self._say(replies.hello())
            return
        ours = filter_ehlo(
            reply.lines,
            starttls=self._terms.starttls and not self._secure,
            xclient=self._terms.trusted,
            one_recipient=self._one_recipient,
        )
        self._say(ours)

    def _on_hello_for_xclient(self, reply: Reply, _argument: bytes = b"") -> None:
        """Announce the client, if the next hop takes that, before it is introduced by its name."""
        offered = Offers.read(reply.lines).xclient if reply.positive else frozenset()
        protocol = b"ESMTP" if self._extended else b"SMTP"
        self._announcing = deque(self._identity.xclient(offered, helo=self._hello, protocol=protocol))
        if self._announcing:
            self._ask(self._announcing.popleft(), self._on_xclient)
        elif reply.positive or not self._extended:
            self._effects.append(
                Note("next hop does not offer XCLIENT; it takes the filter's address for the client's")
            )
            self._announced = True
            if self._extended:
                self._on_hello(reply)
            else:
                self._repeat_hello()
        else:
            self._pass_on(reply)

    def _on_xclient(self, reply: Reply, _argument: bytes = b"") -> None:
        if not reply.positive:
            # It refuses this client. Nothing was announced: no later command gets past this.
            self._pass_on(reply)
        elif self._announcing:
            self._ask(self._announcing.popleft(), self._on_xclient)
        else:
            # It has gone back to its greeting (Postfix XCLIENT_README) and must hear the name again.
            self._announced = True
            self._repeat_hello()

    def _on_own_xforward(self, _reply: Reply, _argument: bytes) -> None:
        # It only changes what the next hop logs: a refusal is no reason to refuse mail.
        return

    def _on_mail(self, reply: Reply, argument: bytes) -> None:
        if reply.positive:
            self._begin_transaction(argument)
        self._pass_on(reply)

    def _begin_transaction(self, argument: bytes) -> None:
        self._transaction = True
        self._binary = has_parameter(argument, b"BODY=BINARYMIME")
        self._sender = argument
        self._recipients = []

    def _on_rcpt(self, reply: Reply, argument: bytes) -> None:
        if reply.positive:
            self._recipients.append(argument)
        self._pass_on(reply)

    def _on_rset(self, reply: Reply, _argument: bytes) -> None:
        if reply.positive:
            self._forget_envelope()
        self._pass_on(reply)

    def _on_rset_within_message(self, reply: Reply, argument: bytes) -> None:
        if reply.positive:
            self._on_rset(reply, argument)
        else:
            # For the next hop the transaction goes on, and the message in it has lost its beginning.
            self._break_off("next hop answered RSET with %s", _show(reply))

    def _on_xforward(self, reply: Reply, argument: bytes) -> None:
        if reply.positive:
            self._remote.update(parse_xforward(argument))
        self._pass_on(reply)

    def _on_auth(self, reply: Reply, _argument: bytes = b"") -> None:
        if reply.code == _AUTHENTICATED:
            self._authenticated = True
        if reply.code == _AUTH_CONTINUES:
            self._phase = _AUTH
            self._say(reply.encode())
        else:
            self._pass_on(reply)

    def _on_quit(self, reply: Reply, _argument: bytes = b"") -> None:
        self._close(reply.encode(), linger=False)

    def _on_own_rset(self, reply: Reply, _argument: bytes = b"") -> None:
        # A next hop that keeps the old envelope could send the next message to its recipients.
        if not reply.positive:
            self._break_off("next hop answered RSET with %s", _show(reply))

    def _on_own_noop(self, reply: Reply, _argument: bytes = b"") -> None:
        if reply.code == _CLOSING:
            self._break_off("next hop answered NOOP with %s", _show(reply))

    # ---- the end ------------------------------------------------------------------------------

    def _lost_reply(self) -> bytes:
        return replies.NEXT_HOP_UNREACHABLE if self._phase is _PREPARING else replies.NEXT_HOP_LOST

    def _break_off(self, what_it_did: str, *arguments: str) -> None:
        """Give a next hop up that cannot be understood any more."""
        self._effects.append(Note(what_it_did, arguments))
        self._lose_server(replies.NEXT_HOP_CONFUSED)

    def _lose_server(self, reply: bytes) -> None:
        """Go on without a next hop: read a message to its end, but say 4xx to it, and close with 421."""
        self._server_gone = True
        self._owed.clear()
        self._effects.append(CloseServer(abort=self._phase is _TRANSMISSION))
        if self._phase in (_DATA, _CHUNK):
            self._fail(replies.NEXT_HOP_LOST_MESSAGE)
        elif self._phase is _VERDICT:
            self._carry_out()
        else:
            if self._phase in (_TRANSMISSION, _FINAL_REPLY):
                self._answer(replies.NEXT_HOP_LOST_MESSAGE, taken=self._taken or None)
            self._close(reply)

    def _close(self, reply: bytes | None = None, *, linger: bool = True) -> None:
        """End the dialogue on both sides; ``reply`` is the last thing that the client hears."""
        if self._phase is _CLOSED:
            return
        # Within a handshake there is no way to say anything.
        if reply is not None and self._phase is not _HANDSHAKE:
            self._say(reply)
        self._discard()
        if not self._server_gone:
            self._effects.append(CloseServer(abort=self._phase is _TRANSMISSION))
        self._effects.append(CloseClient(linger))
        self._phase = _CLOSED
        self._owed.clear()

    def _discard(self) -> None:
        if self._stored:
            self._stored = False
            self._effects.append(Discard())

    def _abandon_chunks(self) -> bool:
        """Throw the chunks of a message away that has not ended; tell whether there were any."""
        had_chunks = self._message is not None
        self._message = None
        self._discard()
        if had_chunks:
            self._effects.append(Answered(b""))
        return had_chunks

    def _forget_envelope(self) -> None:
        """Return to the state after EHLO (RFC 5321 section 4.1.1.5)."""
        self._transaction = False
        self._binary = False
        self._forwarded = False
        self._forwarding = None
        self._sender = b""
        self._recipients = []
        # Postfix sends XFORWARD anew for each message and forgets it with the envelope.
        self._remote = {}

    def _envelope(self) -> Envelope:
        return Envelope(
            sender=parse_path(self._sender, b"FROM"),
            recipients=tuple([parse_path(argument, b"TO") for argument in self._recipients]),
            remote=self._remote.get(b"ADDR"),
            remote_helo=self._remote.get(b"HELO"),
        )

    def _say(self, reply: bytes) -> None:
        self._said_421 = reply.startswith(b"421")
        self._effects.append(ToClient(reply))

    def _take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # Verbs that are not here are unknown. That, too, is an allow-list: a verb that opened another way for
    # a message would lead it past the scanner.
    _COMMANDS: ClassVar[dict[bytes, _Command]] = {
        b"HELO": _Command(_do_helo, _objection_to_hello, before_hello=True),
        b"EHLO": _Command(_do_ehlo, _objection_to_hello, before_hello=True),
        b"LHLO": _Command(_do_ehlo, _objection_to_lhlo, before_hello=True),
        b"MAIL": _Command(_do_mail, _objection_to_mail, grouped=True, between_chunks=False),
        b"RCPT": _Command(_do_rcpt, grouped=True, between_chunks=False),
        b"DATA": _Command(_do_data, _objection_to_data, between_chunks=False),
        # Whatever is wrong with it, its octets must be read (RFC 3030 section 2): it objects by itself.
        b"BDAT": _Command(_do_bdat, before_hello=True),
        b"RSET": _Command(_do_rset, before_hello=True, grouped=True),
        b"QUIT": _Command(_do_quit, before_hello=True),
        b"AUTH": _Command(_do_auth, between_chunks=False),
        b"STARTTLS": _Command(_do_starttls, _objection_to_starttls),
        b"XFORWARD": _Command(_do_xforward, grouped=True, between_chunks=False),
        b"XCLIENT": _Command(_do_xclient, _objection_to_xclient, before_hello=True),
        b"PROXY": _Command(_do_proxy, before_hello=True),
        b"NOOP": _Command(_do_plain, before_hello=True),
        b"VRFY": _Command(_do_plain),
        b"EXPN": _Command(_do_plain),
        b"HELP": _Command(_do_plain, before_hello=True),
        b"ETRN": _Command(_do_plain, between_chunks=False),
    }


# What clamd says in place of a greeting: it waits for a command, and not for long (clamd.conf(5), CommandReadTimeout).
_CLAMD_HAS_WAITED = b"COMMAND READ TIMED OUT"

# What the client is told of a message that is refused for good.
_BOUNCES = {Ground.OVERSIZE: replies.OVERSIZE_BOUNCED, Ground.FORGERY: replies.FORGERY_BOUNCED}

# A reply of one line that is good, if the line is well-formed (RFC 5321 section 4.2).
_GOOD_REPLY = re.compile(rb"2[0-9][0-9] ")


def reply_to(decision: Drop | Bounce | Defer) -> bytes:
    """Return what the client is told of a message that is not delivered."""
    if isinstance(decision, Drop):
        return replies.VIRUS_DROPPED
    if isinstance(decision, Bounce):
        return _BOUNCES.get(decision.ground, replies.VIRUS_BOUNCED)
    return replies.OVERSIZE_DEFERRED if decision.ground is Ground.OVERSIZE else replies.SCAN_FAILED


def _is_one_line(data: bytes, limit: int) -> bool:
    """Whether this is one line that ends with CRLF, of ``limit`` octets at most without that, and nothing else."""
    return (
        data[-2:] == b"\r\n"
        and data.find(b"\r") == len(data) - 2 <= limit
        and data.find(b"\n") == len(data) - 1
        and b"\0" not in data
    )


def _show(reply: Reply) -> str:
    return f"{reply.code} {reply.lines[-1].decode('latin-1')}"
