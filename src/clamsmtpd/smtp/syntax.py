"""The grammar of SMTP: command lines, paths, reply lines, XFORWARD attributes, and their limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from clamsmtpd.values import record

__all__ = [
    "AUTH_LINE_MAX",
    "COMMAND_LINE_MAX",
    "CommandLines",
    "Malformed",
    "Refused",
    "Reply",
    "ReplyReader",
    "decode_xtext",
    "has_parameter",
    "parse_chunk",
    "parse_command",
    "parse_path",
    "parse_xforward",
    "xtext",
]

#: Octets of a command line without its CRLF. RFC 5321 section 4.5.3.1.4 asks for 512 and has extensions add
#: to it; the sum of all that we pass stays below this.
COMMAND_LINE_MAX = 2048

#: Octets of a line in an AUTH dialogue (RFC 4954 section 4: 12288 with its CRLF).
AUTH_LINE_MAX = 12286

#: Octets of a whole reply. RFC 5321 section 4.5.3.1.5 asks for 512 a line; EHLO and HELP have some dozens.
REPLY_MAX = 65536

_FORBIDDEN = re.compile(rb"[\0\n]|\r(?!\n)")


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that must not be passed on: ``too_long``, or else it holds NUL or a bare CR or LF."""

    too_long: bool


class CommandLines:
    """Cuts what the client sends into lines that end with CRLF (RFC 5321 section 2.3.8).

    Octets that are no commands, such as the text of a message, are taken out with :meth:`take_all`.
    A line with NUL, or with CR or LF that are not a pair, is refused as one line up to its CRLF: were
    it cut at a bare LF, ``DA<NUL>`` could be completed by what follows.
    """

    __slots__ = ("_at", "pending", "refusing")

    def __init__(self) -> None:
        #: Empty when all octets have been taken out.
        self.pending = b""
        # Where the octets in it begin that have not been taken out. To cut the others off with each line would
        # cost the square of what a client pipelines.
        self._at = 0
        #: Whether what comes next is the rest of a line that was refused, up to its CRLF.
        self.refusing = False

    def __len__(self) -> int:
        return len(self.pending) - self._at

    def feed(self, data: bytes) -> None:
        """Append octets from the client."""
        self.pending = self.pending[self._at :] + data if self.pending else data
        self._at = 0

    def take_all(self) -> bytes:
        """Take out everything, as it stands."""
        data = self.pending[self._at :] if self._at else self.pending
        self.pending = b""
        self._at = 0
        return data

    def take(self, octets: int) -> bytes:
        """Take out as many of the next ``octets`` as are there."""
        begin = self._at
        if octets >= len(self.pending) - begin:
            return self.take_all()
        self._at = begin + octets
        return self.pending[begin : self._at]

    def next(self, limit: int) -> bytes | Refused | None:
        """Take out the next line, without CRLF; None if its end has not come.

        The refusal of a line comes as soon as it is certain, once; the rest of that line is then dropped.
        What comes out depends on the octets alone, not on how they were cut into segments.
        """
        if self.refusing and not self._drop_refused():
            return None
        data, begin = self.pending, self._at
        if not data:
            return None
        end = data.find(b"\r\n", begin)
        if end < 0:
            return self._check_partial(limit)
        line = data[begin:end]
        self._take_until(end + 2)
        if len(line) <= limit and b"\0" not in line and b"\n" not in line and b"\r" not in line:
            return line
        return self._verdict(line, limit) or line

    def _drop_refused(self) -> bool:
        """Drop the rest of a line that was refused; tell whether its end has come."""
        end = self.pending.find(b"\r\n", self._at)
        if end < 0:
            # A CR at the very end may be half of the CRLF that ends the line.
            self.pending = b"\r" if self.pending.endswith(b"\r") else b""
            self._at = 0
            return False
        self.refusing = False
        self._take_until(end + 2)
        return True

    def _take_until(self, end: int) -> None:
        if end == len(self.pending):
            self.pending = b""
            self._at = 0
        else:
            self._at = end

    def _check_partial(self, limit: int) -> Refused | None:
        data = self.pending[self._at :]
        line = data[:-1] if data.endswith(b"\r") else data
        refused = self._verdict(line, limit)
        if refused:
            self.refusing = True
            self._take_until(self._at + len(line))
        return refused

    @staticmethod
    def _verdict(line: bytes, limit: int) -> Refused | None:
        bad = _FORBIDDEN.search(line)
        if bad and bad.start() < limit:
            return Refused(too_long=False)
        if len(line) > limit:
            return Refused(too_long=True)
        return None


_BLANKS = re.compile(rb"[ \t]+")


def parse_command(line: bytes) -> tuple[bytes, bytes]:
    """Split a command line into its verb, in upper case, and its argument without outer blanks."""
    verb, _, argument = line.partition(b" ")
    if b"\t" in verb:
        verb, argument = _BLANKS.split(line, maxsplit=1)
    return verb.upper(), argument.strip(b" \t")


# A path in angle brackets, which may hold a quoted local part with any octet in it (RFC 5321 section 4.1.2).
_BRACKETED = re.compile(rb'<((?:[^"\\<>]|\\.|"(?:[^"\\]|\\.)*")*)>', re.DOTALL)


def parse_path(argument: bytes, keyword: bytes) -> bytes:
    """Return the mailbox in the argument of MAIL (keyword ``FROM``) or RCPT (keyword ``TO``).

    Without the brackets, and without a source route (RFC 5321 appendix C). The null reverse-path gives an
    empty result. It never fails: whether an address is good is for the next hop to say, so an argument
    of another form is returned as it stands.
    """
    name, colon, rest = argument.partition(b":")
    if not colon or name.strip().upper() != keyword:
        return argument
    rest = rest.strip(b" \t")
    match = _BRACKETED.match(rest)
    if match is None:
        return rest.split(b" ", 1)[0]
    path = match.group(1)
    if path.startswith(b"@"):
        path = path.partition(b":")[2] or path
    return path


def has_parameter(argument: bytes, parameter: bytes) -> bool:
    """Tell whether the argument of MAIL has ``parameter``, as in ``BODY=BINARYMIME``, behind its path."""
    # A quoted local part may hold the same characters; to take one for the parameter only refuses a message.
    upper = argument.upper()
    return parameter in upper and parameter in upper.split()


# RFC 3030 section 2: a chunk length has at most twenty digits.
_CHUNK = re.compile(rb"([0-9]{1,20})(?:[ \t]+(.*))?")


def parse_chunk(argument: bytes) -> tuple[int, bool | None] | None:
    """Return the length in octets in the argument of BDAT, and whether this is the last chunk.

    The second item is None when there is something else behind the length. None without a length that can be
    read: nobody knows where the next command starts then.
    """
    match = _CHUNK.fullmatch(argument)
    if match is None:
        return None
    word = match.group(2)
    if word is None:
        return int(match.group(1)), False
    return int(match.group(1)), True if word.upper() == b"LAST" else None


_HEX_PAIR = re.compile(rb"\+([0-9A-Fa-f]{2})")


def decode_xtext(value: bytes) -> bytes:
    """Undo the quoting of RFC 3461 section 4; what is not quoted stays as it is."""
    return _HEX_PAIR.sub(lambda pair: bytes((int(pair.group(1), 16),)), value)


_PLAIN = frozenset(range(33, 127)) - {ord("+"), ord("=")}


def xtext(value: bytes) -> bytes:
    """Quote octets as RFC 3461 section 4 wants them in the value of an attribute."""
    return b"".join(bytes((octet,)) if octet in _PLAIN else b"+%02X" % octet for octet in value)


def parse_xforward(argument: bytes) -> dict[bytes, bytes | None]:
    """Return the attributes of an XFORWARD command (Postfix XFORWARD_README), names in upper case.

    An attribute that the client says it does not know (``[UNAVAILABLE]``, ``[TEMPUNAVAIL]``) is None. The
    prefix ``IPv6:`` of an address is left away. Words that are no attributes are passed over: it is
    the next hop that accepts or refuses the command.
    """
    found: dict[bytes, bytes | None] = {}
    for word in argument.split():
        name, equals, value = word.partition(b"=")
        if not equals:
            continue
        decoded = decode_xtext(value)
        if name.upper() == b"ADDR" and decoded[:5].upper() == b"IPV6:":
            decoded = decoded[5:]
        unknown = value.upper() in (b"", b"[UNAVAILABLE]", b"[TEMPUNAVAIL]")
        found[name.upper()] = None if unknown else decoded
    return found


@record
class Reply:
    """A complete reply of the next hop (RFC 5321 section 4.2).

    ``lines`` are the texts behind code and separator.
    """

    code: int
    lines: tuple[bytes, ...]
    # As it came, where that is how it goes on: nearly always.
    _wire: bytes = field(default=b"", repr=False, compare=False)

    @property
    def positive(self) -> bool:
        """Whether the command succeeded (2yz)."""
        return 200 <= self.code <= 299

    @property
    def negative(self) -> bool:
        """Whether the next hop refused, for now (4yz) or for good (5yz)."""
        return self.code >= 400

    @property
    def intermediate(self) -> bool:
        """Whether the next hop wants more before it answers (3yz)."""
        return 300 <= self.code <= 399

    def encode(self) -> bytes:
        """Return the reply as it goes to the client, each line ended by CRLF."""
        if self._wire:
            return self._wire
        *first, last = self.lines
        return b"".join(b"%d-%b\r\n" % (self.code, text) for text in first) + b"%d %b\r\n" % (self.code, last)


@dataclass(frozen=True, slots=True)
class Malformed:
    """Something from the next hop that is no SMTP reply; nothing after it can be relied on."""

    text: bytes


# Some servers leave the blank away when there is no text; RFC 5321 section 4.2 wants it understood.
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\r\n\0]*+))?(\r?\n)")


class ReplyReader:
    """Assembles replies from octets of the next hop, in whatever pieces they come.

    A reply counts only when its last line is there with its line end. All lines must have the same code
    (RFC 5321 section 4.2.1). Lines end with CRLF; a bare LF is taken too, which can shift no reply.
    """

    __slots__ = ("_at", "_code", "_data", "_lines", "_size", "ready")

    def __init__(self) -> None:
        self._data = b""
        # As in CommandLines.
        self._at = 0
        #: Whether some line among the octets may have its end, so that it is worth while to ask for a reply.
        self.ready = False
        self._code = 0
        self._lines: list[bytes] = []
        self._size = 0

    def __bool__(self) -> bool:
        """Whether octets are left that no reply has used."""
        return bool(self._lines) or self._at < len(self._data)

    def feed(self, data: bytes) -> None:
        """Append octets from the next hop."""
        self._data = self._data[self._at :] + data if self._data else data
        self._at = 0
        self.ready = self.ready or b"\n" in data

    def next(self) -> Reply | Malformed | None:
        """Take out the next complete reply; None if there is none yet."""
        if not self.ready:
            return self._check_partial()
        while match := _REPLY_LINE.match(self._data, self._at):
            begin, end = match.span()
            self._size += end - 1 - begin
            digits, separator, text, line_end = match.groups()
            code = int(digits)
            if self._size > REPLY_MAX or (self._lines and code != self._code):
                return Malformed(self._data[begin:end].rstrip(b"\r\n")[:200])
            wire = self._data[begin:end]
            if end == len(self._data):
                self._data = b""
                self._at = 0
                self.ready = False
            else:
                self._at = end
            if separator == b" " and not self._lines:
                self._size = 0
                return Reply(code, (text,), wire if line_end == b"\r\n" else b"")
            self._code = code
            self._lines.append(text or b"")
            if separator != b"-":
                reply = Reply(code, tuple(self._lines))
                self._lines = []
                self._size = 0
                return reply
        line, newline, _ = self._data[self._at :].partition(b"\n")
        if newline:
            return Malformed(line.removesuffix(b"\r")[:200])
        self.ready = False
        return self._check_partial()

    def _check_partial(self) -> Malformed | None:
        if self._size + len(self._data) - self._at > REPLY_MAX:
            return Malformed(self._data[self._at :][:200])
        return None
