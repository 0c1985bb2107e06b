"""What holds for every dialogue, whatever both sides, the scanner and the clocks do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from clamsmtpd.smtp.events import (
    Awaits,
    BeginMessage,
    CloseClient,
    CloseServer,
    Discard,
    Effect,
    Inspect,
    Reconnect,
    SecureClient,
    SecureServer,
    Store,
    ToClient,
    ToServer,
    Transmit,
)
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import OUTSTANDING_MAX, Relay, Terms
from clamsmtpd.values import Bounce, Decision, Defer, Deliver, Drop, Ground, OutTls

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


@dataclass
class Watcher:
    """Performs effects on a world of its own, and looks for what must not be."""

    relay: Relay
    stored: bool = False
    inspecting: bool = False
    delivering: bool = False
    client_closed: bool = False
    server_closed: bool = False
    securing_client: bool = False
    securing_server: bool = False
    storing: bool = False

    def watch(self, effects: list[Effect]) -> None:
        self.storing = any(isinstance(effect, Store) for effect in effects)
        for effect in effects:
            match effect:
                case ToClient(data):
                    assert not self.client_closed
                    assert not self.securing_client
                    assert data.endswith(b"\r\n")
                case ToServer(data):
                    assert not self.server_closed
                    assert not self.securing_server
                    assert data.count(b"\r\n") == 1
                    if data == b"DATA\r\n":
                        assert self.delivering
                case BeginMessage():
                    assert not self.stored
                    self.stored = True
                    self.inspecting = self.delivering = False
                case Store():
                    assert self.stored
                case Discard():
                    assert self.stored
                    self.stored = self.inspecting = self.delivering = False
                case Inspect():
                    assert self.stored
                    self.inspecting = True
                case Transmit():
                    assert self.stored
                    assert self.delivering
                    assert not self.server_closed
                case SecureClient():
                    self.securing_client = True
                case SecureServer():
                    self.securing_server = True
                case Reconnect():
                    assert not self.client_closed
                case CloseServer():
                    assert not self.server_closed
                    self.server_closed = True
                case CloseClient():
                    assert not self.client_closed
                    self.client_closed = True
                    assert not self.stored
        assert len(self.relay._owed) <= OUTSTANDING_MAX
        assert self.client_closed == (self.relay.awaits is Awaits.NOTHING)

    def happen(self, name: str, argument: object) -> None:
        relay = self.relay
        if name == "decide":
            if self.inspecting:
                self.inspecting = False
                self.delivering = isinstance(argument, Deliver)
                self.watch(relay.decide(argument))  # type: ignore[arg-type]
        elif name == "storage_failed":
            # It is a store that fails, when it is carried out.
            if self.storing:
                self.watch(relay.storage_failed())
        elif name in ("full", "empty"):
            self.watch(relay.client_full(full=name == "full"))
        elif name == "client_secured":
            if self.securing_client:
                self.securing_client = False
                self.watch(relay.client_secured())
        elif name in ("server_secured", "server_insecure"):
            if self.securing_server:
                self.securing_server = False
                self.watch(relay.server_secured() if name == "server_secured" else relay.server_insecure("no"))
        elif name == "server_data":
            # Through a connection that is closed, or in the midst of a handshake, nothing comes.
            if not self.server_closed and not self.securing_server:
                self.watch(relay.server_data(argument))  # type: ignore[arg-type]
        else:
            method: Callable[..., list[Effect]] = getattr(relay, name)
            if name in ("timed_out", "client_lost", "server_lost"):
                self.securing_client = self.securing_server = False
            self.watch(method() if argument is None else method(argument))


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
    watcher = Watcher(Relay(terms, Identity(address="192.0.2.1", learnt=terms.trusted)))
    for name, argument in [*START[:start], *events]:
        watcher.happen(name, argument)
    watcher.securing_client = watcher.securing_server = False
    watcher.watch(watcher.relay.client_lost())
    watcher.watch(watcher.relay.server_lost("gone"))
    assert watcher.client_closed
    assert not watcher.stored
