"""The two sides of a relay's dialogue, each as it must understand it from what it says and hears itself.

Neither knows anything of the relay. :class:`ClientSide` knows at every moment how many replies are due to it, and
which of its octets are commands, text and chunks. :class:`ServerSide` knows which of its replies is for which command.
"""

from __future__ import annotations

import re
from collections import Counter, deque

from tests.support.plain import end_of_data, is_bad_line, read_replies

__all__ = ["AUTH_LINE", "ClientSide", "ServerSide"]

#: What stands for the verb of a line of an AUTH dialogue.
AUTH_LINE = b"auth line"

_COMMAND_MAX = 2048
_AUTH_MAX = 12286

# They may be followed by more before they are answered (RFC 2920 section 3.1).
_GROUPED = frozenset({b"MAIL", b"RCPT", b"RSET", b"XFORWARD"})
_HELLOS = frozenset({b"EHLO", b"HELO", b"LHLO"})


class ClientSide:
    """A client that sends whatever it likes, and holds the replies against what it has sent.

    ``due`` is how many replies it may expect to what has been taken of its octets, ``asked`` what they are for: a
    verb, ``message``, ``chunk`` or ``auth line``. ``text`` is the message that has just ended. ``commands`` are the
    lines so far.
    """

    def __init__(self, *, lmtp: bool) -> None:
        self.due = 1
        self.asked = "greeting"
        self.text = b""
        self.chunked = False
        self.recipients = 0
        self.commands: list[bytes] = []
        #: It has been told 421 and hears nothing more.
        self.dismissed = False
        self._lmtp = lmtp
        self._octets = b""
        self._verb = b""
        self._mode = "lines"
        self._transaction = False
        self._skipping = False
        self._chunk_left = 0
        self._last = False
        self._chunks: bytes | None = None
        #: A chunk of the message was refused.
        self.spoilt = False

    def send(self, octets: bytes) -> None:
        """Send octets."""
        self._octets += octets
        self._walk()

    def hear(self, octets: bytes) -> list[tuple[str, bytes, int]]:
        """Hear whole replies; return what each was for, the last command line then, and its code."""
        answers = read_replies(octets)
        assert not answers.malformed
        assert not answers.rest
        heard = []
        for code, _ in answers.replies:
            # LMTP says it to each recipient.
            assert self.due or not self.dismissed, "it was told 421 before"
            early = not self.due and self._mode in ("lines", "auth") and code != 421 and self._is_refused_early()
            # In place of a bad line in a dialogue of AUTH, that dialogue is cancelled.
            what = self.asked if self.due else "auth line" if early and self._mode == "auth" else ""
            heard.append((what, self.commands[-1] if self.commands else b"", code))
            if self.due:
                self.due -= 1
                self._understand(code)
            elif early:
                self._skipping = True
                self._mode = "auth" if self._mode == "auth" and code == 334 else "lines"
            else:
                # RFC 5321 section 3.8: the one reply that needs no command.
                assert code == 421, f"{code} answers nothing"
            self.dismissed = code == 421
            self._walk()
        return heard

    @property
    def in_transaction(self) -> bool:
        """Whether a MAIL was taken, and nothing has ended what it began."""
        return self._transaction

    @property
    def has_more(self) -> bool:
        """Whether it has sent something that is still to be taken."""
        return bool(self._octets)

    def secure(self) -> None:
        """Begin anew, inside of TLS."""
        self._forget()

    def all_commands(self) -> list[bytes]:
        """Return the lines of all commands, with those that wait behind others that have no reply yet."""
        verb = self._verb
        ahead = []
        for line in self._octets.split(b"\r\n")[:-1]:
            if self._mode != "lines" or verb not in _GROUPED:
                break
            ahead.append(line)
            verb = _verb(line)
        return self.commands + ahead

    def _is_refused_early(self) -> bool:
        limit = _AUTH_MAX if self._mode == "auth" else _COMMAND_MAX
        return not self._skipping and is_bad_line(self._octets.removesuffix(b"\r"), limit)

    def _walk(self) -> None:
        while not self.due:
            if self._mode == "text":
                found = end_of_data(self._octets) if b".\r\n" in self._octets else None
                if found is None:
                    return
                self.text, self._octets = found
                self._end_message()
            elif self._mode == "chunk":
                if len(self._octets) < self._chunk_left:
                    return
                self._take_chunk()
            else:
                line, end, rest = self._octets.partition(b"\r\n")
                if not end:
                    return
                self._octets = rest
                if self._skipping:
                    self._skipping = False
                    continue
                self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        in_auth = self._mode == "auth"
        self._mode = "lines"
        self.due = 1
        self.commands.append(line)
        bad = is_bad_line(line, _AUTH_MAX if in_auth else _COMMAND_MAX)
        self._verb = b"AUTH" if in_auth else b"" if bad else _verb(line)
        self.asked = "auth line" if in_auth else self._verb.decode("latin-1")
        chunk = re.fullmatch(rb"BDAT[ \t]+([0-9]{1,20})(?:[ \t]+(.*?))?[ \t]*", line, re.IGNORECASE | re.DOTALL)
        if self._verb == b"BDAT" and chunk:
            self.due = 0
            self._mode = "chunk"
            self._chunk_left = int(chunk[1])
            self._last = (chunk[2] or b"").upper() == b"LAST"
        elif self._verb == b"RSET" or (self._verb in _HELLOS and (self._verb == b"LHLO") == self._lmtp):
            self._chunks = None

    def _take_chunk(self) -> None:
        if self._chunks is None:
            self.spoilt = False
        self._chunks = (self._chunks or b"") + self._octets[: self._chunk_left]
        self._octets = self._octets[self._chunk_left :]
        if self._last and self._transaction:
            self.text, self._chunks = self._chunks, None
            self._end_message(chunked=True)
            return
        self._mode = "lines"
        self.asked = "chunk"
        self.due = 1

    def _end_message(self, *, chunked: bool = False) -> None:
        self._mode = "lines"
        self.asked = "message"
        self.chunked = chunked
        if not chunked:
            self.spoilt = False
        # RFC 2033 section 4.2.
        self.due = max(self.recipients, 1) if self._lmtp else 1

    def _understand(self, code: int) -> None:
        good = 200 <= code <= 299
        match self.asked:
            case "EHLO" | "HELO" | "LHLO" | "RSET" if good:
                self._forget()
            case "MAIL" if good:
                self._transaction = True
                self.recipients = 0
            case "RCPT" if good:
                self.recipients += 1
            case "DATA" if code == 354:
                self._mode = "text"
            case "AUTH" | "auth line" if code == 334:
                self._mode = "auth"
            case "STARTTLS" if code == 220:
                # RFC 3207 section 4: what was sent before the handshake is nothing.
                self._octets = b""
            case "XCLIENT" if code == 220:
                self._forget()
            case "chunk":
                if not self._transaction:
                    self._chunks = None
                else:
                    self.spoilt = self.spoilt or not good
            case "message" if not self.due:
                self._forget()

    def _forget(self) -> None:
        self._transaction = False
        self._chunks = None
        self.recipients = 0


def _verb(line: bytes) -> bytes:
    return re.split(rb"[ \t]", line, maxsplit=1)[0].upper()


class ServerSide:
    """A next hop that says whatever it likes; each reply is for the first command that has none."""

    def __init__(self) -> None:
        self.asked: deque[bytes] = deque([b"GREETING"])
        #: It has said what no client can understand, or more than it was asked for.
        self.confused = False
        #: It has offered CHUNKING.
        self.chunking = False
        #: Good replies to the message at hand, once it had all of it.
        self.accepted = 0
        #: Its last reply to DATA asks for text.
        self.ready_for_text = False
        self._octets = b""
        #: The largest message that it takes, as its last reply to EHLO says.
        self.size: int | None = None
        #: It has offered PIPELINING.
        self.pipelining = False
        #: How often it said 2xx to each command line, and, under ``AUTH_LINE``, anything at all to AUTH.
        self.good: Counter[bytes] = Counter()
        self._lines: deque[bytes] = deque([b""])
        self._said: deque[tuple[int, tuple[bytes, ...], bool]] = deque()
        self._has_text = False

    def say(self, octets: bytes) -> None:
        """Send octets."""
        if b"\n" not in octets:
            self._octets += octets
            return
        answers = read_replies(self._octets + octets)
        self._octets = answers.rest
        self._said.extend((code, lines, self._has_text) for code, lines in answers.replies)
        self.confused = self.confused or answers.malformed
        self._pair()

    def hear(self, line: bytes, *, secret: bool = False) -> None:
        """Hear a command; ``secret``: it may be a line of an AUTH dialogue, which is none."""
        self._lines.append(line.removesuffix(b"\r\n"))
        verb = _verb(self._lines[-1])
        self.asked.append(AUTH_LINE if secret and verb != b"AUTH" else verb)
        self._pair()

    def take_text(self, replies: int) -> None:
        """Begin to hear the text of a message, which wants so many replies."""
        self.ready_for_text = self._has_text = False
        self.accepted = 0
        self.asked.extend([b"TEXT"] * replies)
        self._lines.extend([b""] * replies)
        self._pair()

    def end_text(self) -> None:
        """Have heard all of it."""
        self._has_text = True

    @property
    def unasked(self) -> bool:
        """Whether it has said more than it was asked for."""
        return bool(self._said)

    def _pair(self) -> None:
        while self.asked and self._said:
            verb = self.asked.popleft()
            code, lines, had_text = self._said.popleft()
            good = 200 <= code <= 299
            line = self._lines.popleft()
            # A line of an AUTH dialogue may itself begin with AUTH.
            in_auth = verb in (b"AUTH", AUTH_LINE)
            self.good[AUTH_LINE if in_auth else line] += good or in_auth
            if verb == b"DATA":
                self.ready_for_text = code == 354
            elif verb == b"TEXT" and good and had_text:
                self.accepted += 1
            elif verb in (b"EHLO", b"LHLO") and good:
                words = [line.upper().split() for line in lines[1:]]
                self.pipelining = self.pipelining or [b"PIPELINING"] in [line[:1] for line in words]
                self.chunking = self.chunking or [b"CHUNKING"] in [line[:1] for line in words]
                sizes = [
                    int(line[1])
                    for line in words
                    if line[:1] == [b"SIZE"] and re.fullmatch(rb"[0-9]+", b"".join(line[1:2]))
                ]
                self.size = (sizes[0] or None) if sizes else None
            elif verb == b"HELO" and good:
                self.size = None
