"""``pass_mail.py LISTEN NEXT-HOP FIELD``: a clean and an infected message go through a filter that listens on a port.

The next hop is a server of this program on the other port. FIELD is the header field that the filter adds. The filter
must deliver the clean message with it, and drop the infected one. The exit status is 0 if so; else 1, with a line on
standard error. For test-deb, which asks the same of the package clamsmtp and of ours: it needs no library, but the
checkout and its src in PYTHONPATH.
"""

from __future__ import annotations

import smtplib
import sys
import time

from tests.support.clamd import EICAR
from tests.support.sink import Sink

FIELDS = b"From: a@example.test\r\nTo: b@example.test\r\nSubject: "
CLEAN = FIELDS + b"lunch\r\n\r\nAt noon, as always?\r\n"
INFECTED = FIELDS + b"invoice\r\n\r\n" + EICAR + b"\r\n"

#: Seconds for the filter to be there, and to have found its scanner usable.
PATIENCE = 20


def send(port: int, text: bytes) -> str:
    """Send one message; return the reply to its final dot, or to whatever was refused before."""
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.ehlo("client.example.test")
        client.mail("a@example.test")
        client.rcpt("b@example.test")
        code, reply = client.data(text)
    return f"{code} {reply.decode('ascii', 'backslashreplace')}"


def wait_for(port: int) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            smtplib.SMTP("127.0.0.1", port, timeout=60).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def main(listen: int, next_hop: int, field: str) -> int:
    """Return the exit status."""
    with Sink(port=next_hop) as mailbox:
        wait_for(listen)
        replies = [send(listen, text) for text in (CLEAN, INFECTED)]
        arrived = [bytes(text) for text in mailbox.messages]
    print("clean:   ", replies[0], "\ninfected:", replies[1])
    head, body = CLEAN.split(b"\r\n\r\n")
    if not all(reply.startswith("250 ") for reply in replies):
        print("pass_mail: both should be told 250", file=sys.stderr)
    elif arrived != [head + b"\r\n" + field.encode() + b"\r\n\r\n" + body]:
        print(f"pass_mail: the clean one alone should arrive, with {field}; there came {arrived}", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
