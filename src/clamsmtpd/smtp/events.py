"""What the relay asks of the session that runs it.

The relay (``smtp.relay``) never does I/O. Each of its methods takes one event, such as octets
from the client or a decision, and returns the effects to perform, in order. What it waits for
next, it says in :class:`Awaits`; the clocks are the session's.
"""

from __future__ import annotations

import enum

from clamsmtpd.smtp.identity import Identity
from clamsmtpd.values import Envelope, Insertion, record

__all__ = [
    "Answered",
    "Awaits",
    "BeginMessage",
    "CloseClient",
    "CloseServer",
    "Discard",
    "Effect",
    "Identify",
    "Inspect",
    "Note",
    "Reconnect",
    "SecureClient",
    "SecureServer",
    "Store",
    "ToClient",
    "ToServer",
    "Transmit",
]


class Awaits(enum.Enum):
    """Whose move it is."""

    GREETING = "the next hop to be ready"
    HANDSHAKE = "the client's TLS handshake"
    COMMAND = "the client's next command"
    DATA = "the text of a message from the client"
    REPLY = "a reply of the next hop"
    VERDICT = "the decision about a message"
    TRANSMISSION = "the next hop to take the text of a message"
    FINAL_REPLY = "the next hop's reply to the end of a message"
    NOTHING = "nothing: the dialogue is over"


@record
class ToClient:
    """Send ``data`` to the client."""

    data: bytes


@record
class ToServer:
    """Send ``data`` to the next hop. ``secret``: it is part of an AUTH dialogue, for no log to show."""

    data: bytes
    secret: bool = False


@record
class BeginMessage:
    """Open a spool: the text of a message follows; ``raw``: as its author wrote it, without stuffed dots."""

    raw: bool = False


@record
class Store:
    """Append ``text`` to the spool: octets as the next hop will get them."""

    text: bytes


@record
class Discard:
    """Give the spool up: this message goes no further."""


@record
class Inspect:
    """The message is whole: judge it and answer with ``Relay.decide``.

    ``stuffed`` says that some line has a dot in front that is not its own, so that the text as the
    author wrote it is not the text in the spool. ``header``: as many octets of the spool may be header
    section, for the most lenient reader (``HeaderSection.reach``).
    """

    envelope: Envelope
    stuffed: bool
    header: int


@record
class Answered:
    """The client has its reply about the whole message, or, in LMTP, the last of them: ``reply``.

    It is empty for a message that the client has given up itself, between two chunks, and to which there is none.

    ``taken``: for how many recipients the next hop has taken it; None if the reply is ours, and no word of the next
    hop's about the message.
    """

    reply: bytes
    taken: int | None = None


@record
class Transmit:
    """Send ``before``, the spooled text with ``insertions`` in their order, and ``after``.

    One of the insertions is our own header field, which may be empty.

    Once the last octet has been handed to the transport, the session calls
    ``Relay.transmitted``.
    """

    insertions: tuple[Insertion, ...]
    before: bytes = b""
    after: bytes = b".\r\n"


@record
class SecureClient:
    """Begin TLS with the client, as its server; then call ``Relay.client_secured``.

    Octets of the client's that come before the handshake belong to it and are no commands.
    """


@record
class SecureServer:
    """Begin TLS with the next hop, as its client; then call ``Relay.server_secured``, or ``Relay.server_insecure``."""


@record
class Reconnect:
    """Give the connection to the next hop up without a word, and make another."""


@record
class Identify:
    """The client is somebody else than its connection says: whoever is trusted has told so."""

    identity: Identity


@record
class CloseServer:
    """Close the connection to the next hop.

    ``abort``: at once, throwing away what has not been sent. It is set while the next hop reads
    the text of a message: were the rest flushed, it could take a part for the whole.
    """

    abort: bool = False


@record
class CloseClient:
    """Close the connection to the client once it has taken what was sent to it.

    ``linger``: the client may still be sending. To close on unread octets would reset the connection,
    and the client could lose our last reply with it.
    """

    linger: bool = True


@record
class Note:
    """Something the administrator should read in the log, at the level of a warning.

    ``format`` is one of :data:`clamsmtpd.logevents.EVENTS`, without the connection in front; ``arguments`` may be what
    a stranger said.
    """

    format: str
    arguments: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The note as one text."""
        return self.format % self.arguments


Effect = (
    ToClient
    | ToServer
    | BeginMessage
    | Store
    | Discard
    | Inspect
    | Answered
    | Transmit
    | SecureClient
    | SecureServer
    | Reconnect
    | Identify
    | CloseServer
    | CloseClient
    | Note
)
