"""The numbered messages: what each is made of, and what of it must arrive, all from a seed."""

from __future__ import annotations

import bisect
import itertools
import random

from tests.support.clamd import EICAR

__all__ = ["FIELD", "Letters"]

#: What the daemon adds to a clean message, at the end of the header section (setting Header, its default).
FIELD = b"X-Virus-Scanned: ClamAV using ClamSMTP\r\n"

#: Of so many messages, one is infected.
INFECTED_EVERY = 20

#: Octets of a message: the smallest, and how many times that the largest is.
_SMALLEST = 200
_SPREAD = 10_000
#: The higher, the more messages are small. With this one six of seven stay below 64 KiB, and the mean is some 75 KB.
_SKEW = 3

_NOISE_SIZE = 4_300_000

_HEAD = (
    b"From: Sender <sender@soak.invalid>\r\n"
    b"To: Recipient <recipient@soak.invalid>\r\n"
    b"Message-ID: <%(number)d.%(seed)d@soak.invalid>\r\n"
)


class Letters:
    """The messages of a run: the same ``seed`` gives the same ones.

    Texts are as their authors wrote them, without stuffed dots, and end in CRLF.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        lines = _noise(random.Random(f"{seed} noise"))
        self._starts = [0, *itertools.accumulate(map(len, lines))]
        self._noise = b"".join(lines)

    def infected(self, number: int) -> bool:
        """Whether a message has a virus: one of each twenty."""
        block, place = divmod(number, INFECTED_EVERY)
        return random.Random(f"{self._seed} infected {block}").randrange(INFECTED_EVERY) == place

    def text(self, number: int) -> bytes:
        """Return the text of a message."""
        head, body = self._parts(number)
        return head + b"\r\n" + body

    def delivered(self, number: int) -> bytes:
        """Return the text as it must arrive at the next hop."""
        head, body = self._parts(number)
        return head + FIELD + b"\r\n" + body

    def _parts(self, number: int) -> tuple[bytes, bytes]:
        chance = random.Random(f"{self._seed} text {number}")
        head = _HEAD % {b"number": number, b"seed": self._seed}
        size = int(_SMALLEST * _SPREAD ** (chance.random() ** _SKEW))
        # Each begins at another place: octets of one message that have got into another would be noticed.
        begin = chance.randrange(len(self._starts) // 2)
        begin = self._starts[begin]
        end = self._starts[bisect.bisect_left(self._starts, begin + max(0, size - len(head) - 2))]
        body = b"This is message %d.\r\n" % number + self._noise[begin:end]
        if self.infected(number):
            place = body.index(b"\r\n", chance.randrange(len(body) - 1)) + 2
            body = body[:place] + EICAR + b"\r\n" + body[place:]
        return head, body


def _noise(chance: random.Random) -> list[bytes]:
    """Make lines of every length that SMTP allows (RFC 5321 section 4.5.3.1.6), of octets of eight bits.

    Some begin with a dot, some are empty. NUL and bare CR or LF are not among them: the filter has reasons to refuse
    those, or to change them.
    """
    allowed = bytes(octet for octet in range(256) if octet not in b"\0\r\n")
    table = (allowed * 2)[:256]
    lines = []
    size = 0
    while size < _NOISE_SIZE:
        length = chance.choice((0, 1, 40, 76, 76, 76, 76, 400, 996))
        line = chance.randbytes(length).translate(table)
        if chance.random() < 0.05:
            line = b"." + line
        lines.append(line + b"\r\n")
        size += len(line) + 2
    return lines
