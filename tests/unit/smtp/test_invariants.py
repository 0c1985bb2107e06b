"""What holds for every dialogue, whatever both sides, the scanner and the clocks do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import Terms
from clamsmtpd.values import Bounce, Decision, Defer, Deliver, Drop, Ground, OutTls
from tests.support.watcher import Watcher

CLIENT = st.sampled_from(
    [
        b"EHLO x\r\n",
        b"LHLO x\r\n",
        b"HELO x\r\n",
        b"MAIL FROM:<a>\r\n",
        b"MAIL FROM:<a> BODY=BINARYMIME\r\n",
        b"RCPT TO:<b>\r\n",
        b"RCPT TO:<b>\r\nRCPT TO:<c>\r\n",
        b"DATA\r\n",
        b"text\r\n.\r\n",
        b"a\n.\nb\r\n.\r\n",
        b"BDAT 3\r\nabc",
        b"BDAT 3 LAST\r\n.\r\n",
        b"BDAT 0 LAST\r\n",
        b"BDAT 9 OOPS\r\nNOOP\r\nabc",
        b"BDAT 5000\r\n",
        b"x" * 300,
        b"RSET\r\n",
        b"NOOP\r\n",
        b"WHAT\r\n",
        b"AUTH PLAIN\r\n",
        b"STARTTLS\r\n",
        b"XCLIENT ADDR=192.0.2.1\r\n",
        b"XFORWARD ADDR=192.0.2.2\r\n",
        b"QUIT\r\n",
        b"\0\r\n",
    ]
)
OFFERS = b"250-hop\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-SIZE 400\r\n250-STARTTLS\r\n"
SERVER = st.sampled_from(
    [
        b"220 go\r\n",
        OFFERS + b"250-XFORWARD ADDR\r\n250 XCLIENT ADDR NAME\r\n",
        b"250 ok\r\n",
        b"250 ok\r\n",
        b"250 ok\r\n250 ok\r\n",
        b"250-half",
        b"235 in\r\n",
        b"334 more\r\n",
        b"354 go\r\n",
        b"354 go\r\n",
        b"421 away\r\n",
        b"451 later\r\n",
        b"503 no\r\n",
        b"garbage\r\n",
    ]
)
DECISIONS: list[Decision] = [
    Deliver(b"X: y\r\n"),
    Deliver(insertions=((0, b"X-"),)),
    Deliver(),
    Drop(),
    *map(Bounce, Ground),
    *map(Defer, Ground),
]
EVENTS = st.one_of(
    st.tuples(st.just("client_data"), CLIENT),
    st.tuples(st.just("client_data"), CLIENT),
    st.tuples(st.just("server_data"), SERVER),
    st.tuples(st.just("server_data"), SERVER),
    st.tuples(st.just("decide"), st.sampled_from(DECISIONS)),
    st.tuples(
        st.sampled_from(
            [
                *("transmitted", "keep_alive", "drain", "timed_out", "storage_failed", "client_eof", "client_lost"),
                *("client_secured", "server_secured", "full", "empty"),
            ]
        ),
        st.none(),
    ),
    st.tuples(st.sampled_from(["server_lost", "server_insecure"]), st.just("why")),
)
TERMS = st.builds(
    Terms,
    lmtp_client=st.booleans(),
    lmtp_server=st.booleans(),
    announce=st.booleans(),
    trusted=st.booleans(),
    starttls=st.booleans(),
    out_tls=st.sampled_from(OutTls),
)


#: How a dialogue may begin, so that chance gets further than to its first commands.
START: list[tuple[str, object]] = [
    ("server_data", b"220 hop\r\n"),
    ("client_data", b"EHLO x\r\n"),
    ("server_data", OFFERS + b"250 8BITMIME\r\n"),
    ("client_data", b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\n"),
    ("server_data", b"250 ok\r\n250 ok\r\n250 ok\r\n"),
    ("client_data", b"DATA\r\ntext\r\n.\r\n"),
    ("decide", Deliver()),
    ("server_data", b"354 go\r\n"),
]


@settings(max_examples=1500)
@given(TERMS, st.integers(1, len(START)), st.lists(EVENTS, max_size=50))
def test_what_always_holds(terms: Terms, start: int, events: list[tuple[str, object]]) -> None:
    watcher = Watcher(terms, Identity(address="192.0.2.1", learnt=terms.trusted))
    for name, argument in [*START[:start], *events]:
        watcher.happen(name, argument)
    watcher.end()
