"""No message makes a second one appear behind us, whatever a server takes for the end of a line."""

from __future__ import annotations

import contextlib
import itertools
import smtplib
from collections.abc import Callable

import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.dovecot import Dovecot
from tests.support.exim import EVERY_EXTENSION, Exim
from tests.support.opensmtpd import OpenSmtpd
from tests.support.postfix import Postfix
from tests.support.process import accepts

pytestmark = [pytest.mark.timeout(180), pytest.mark.root]

Start = Callable[..., Daemon]

#: What some server has taken for the end of a line: bare LF, bare CR, CR CR LF, NULs that it drops; and the real one.
LINE_ENDS = [b"\n", b"\r", b"\r\r\n", b"\0\r\n", b"\r\0\n", b"\r\n\0", b"\n\r", b"\r\n"]

#: The line ends in front of a dot and behind it, but for those that make the real end.
ENDS = [pair for pair in itertools.product(LINE_ENDS, LINE_ENDS) if b"\r\n.\r\n" not in b".".join(pair)]

SECOND = (
    b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\n"
    b"Subject: smuggled\r\n\r\nsmuggled\r\n.\r\n"
)


def disguised(before: bytes, after: bytes) -> bytes:
    return b"Subject: carrier\r\n\r\ntext" + before + b"." + after + SECOND.removesuffix(b".\r\n")


def say(client: smtplib.SMTP, batch: bytes, replies: int) -> list[int]:
    client.send(batch)
    return [client.getreply()[0] for _ in range(replies)]


ENVELOPE = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n"


@pytest.mark.parametrize("server", ["Postfix", "Exim", "OpenSMTPD", "Dovecot"])
def test_no_second_transaction_whatever_ends_a_line(clamd: Clamd, start_daemon: Start, server: str) -> None:
    with contextlib.ExitStack() as stack:
        start: dict[str, Callable[[], Postfix | Exim | OpenSmtpd | Dovecot]] = {
            "Postfix": Postfix,
            "Exim": lambda: Exim(*EVERY_EXTENSION),
            "OpenSMTPD": OpenSmtpd,
            "Dovecot": Dovecot,
        }
        behind = start[server]()
        stack.callback(behind.stop)
        address = behind.reinjection if isinstance(behind, Postfix) else behind.address
        assert accepts((address.host or "", address.port))
        lmtp = server == "Dovecot"
        daemon = start_daemon(
            f"OutAddress: {'lmtp:' if lmtp else ''}{address}", f"ClamAddress: {clamd.unix}", lmtp=lmtp, level=3
        )
        taken = 0
        for before, after in ENDS:
            client = stack.enter_context((smtplib.LMTP if lmtp else smtplib.SMTP)("127.0.0.1", daemon.port))
            client.ehlo()
            text = disguised(before, after)
            # By DATA: it is refused, unless it ends before the disguised end of the other.
            assert say(client, ENVELOPE + b"DATA\r\n", 3) == [250, 250, 354]
            assert say(client, text + b".\r\n", 1) == [550], (before, after)
            # In a batch of chunks: it is refused, or all of it is one message.
            chunks = b"BDAT 20\r\n%bBDAT %d LAST\r\n%b" % (text[:20], len(text) - 20, text[20:])
            replies = say(client, ENVELOPE + chunks, 4)
            assert replies[:3] == [250, 250, 250]
            assert replies[3] in (250, 550, 554), (before, after)
            taken += replies[3] == 250
            assert say(client, b"RSET\r\nNOOP\r\n", 2) == [250, 250]
            assert client.quit()[0] == 221
        # The same connection, and the words of SMTP in the text as they may well be.
        client = stack.enter_context((smtplib.LMTP if lmtp else smtplib.SMTP)("127.0.0.1", daemon.port))
        client.ehlo()
        honest = b"Subject: carrier\r\n\r\nQUIT\r\n..\r\n" + SECOND.replace(b"\r\n.", b"\r\n..")
        assert say(client, ENVELOPE + b"DATA\r\n", 3) == [250, 250, 354]
        assert say(client, honest + b".\r\n", 1) == [250]
        texts = behind.wait_for_messages(taken + 1)
        assert len(texts) == taken + 1
        for text in texts:
            assert b"Subject: carrier" in text
            header = text.partition(b"\n\n")[0]
            assert b"smuggled" not in header
            assert b"evil" not in header


def test_the_ends_are_those_that_servers_know() -> None:
    assert len(ENDS) == 58
