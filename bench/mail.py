"""Messages like those of Postfix's smtp-source, each different from all others, which clamd would know from its cache.

Nothing in them is for clamd to take apart or decode: it is done with them sooner than with any real mail of their size,
so that there is nothing behind which the proxy could hide.
"""

from __future__ import annotations

import itertools
import os

__all__ = ["Letters"]

_HEAD = (
    b"From: Sender <sender@bench.invalid>\r\n"
    b"To: Recipient <recipient@bench.invalid>\r\n"
    b"Subject: A message of the benchmark\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
    b"Message-ID: <%(token)b@bench.invalid>\r\n"
    b"\r\n"
    # Once more in the text: clamd looks at, and remembers, that part by itself.
    b"%(token)b\r\n"
)

#: It has no dot that would have to be doubled.
_LINE = b"X" * 78 + b"\r\n"


class Letters:
    """Messages of ``size`` octets, never shorter than their head.

    A message comes in two pieces, its head and ``body``, which is the same for all: nothing of it is copied.
    """

    def __init__(self, size: int, *, end: bytes = b"") -> None:
        self._numbers = itertools.count()
        # Two runs must not send the same either.
        self._run = os.urandom(8).hex().encode()
        rest = max(0, size - len(self.head()))
        lines = _LINE * (rest // len(_LINE) + 1)
        self.body = memoryview((lines[: rest - 2] + b"\r\n" if rest > 2 else b"") + end)
        self.size = len(self.head()) + len(self.body) - len(end)

    def head(self) -> bytes:
        """Return the head of the next message; all are of one length."""
        return _HEAD % {b"token": b"%b%010d" % (self._run, next(self._numbers))}
