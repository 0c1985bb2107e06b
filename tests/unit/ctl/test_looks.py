"""What doctor and check ask of servers: bounded in octets and seconds, and no surprise whatever is answered."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clamsmtpd.config import Settings, load
from clamsmtpd.ctl.asking import Greeting, ServerError, greet
from clamsmtpd.ctl.examination.daemon import judge_listener
from clamsmtpd.ctl.examination.nexthop import judge_next_hop
from clamsmtpd.ctl.looks import (
    Delivery,
    NextHopLook,
    ScannerLook,
    connectable,
    deliver,
    look_at_listener,
    look_at_next_hop,
    look_at_scanner,
)
from clamsmtpd.ctl.rights import Access
from clamsmtpd.values import Listen, NextHop, OutTls, TcpAddress, UnixAddress
from tests.support.process import free_port
from tests.support.sink import HANG, Sink
from tests.support.strangeserver import StrangeServer

LIMIT = 0.3

#: What stands for all that a server may say in place of a greeting, and what is said of it.
STRANGE = [
    (StrangeServer, {}, "no answer in time"),
    (StrangeServer, {"cut": True}, "it hangs up without a reply"),
    (lambda **more: StrangeServer(b"220 half a gree", **more), {"cut": True}, "it hangs up without a reply"),
    (
        lambda **more: StrangeServer(b"+OK dovecot ready\r\n", **more),
        {},
        'it says what is no SMTP: "+OK dovecot ready"',
    ),
    (lambda **more: StrangeServer(bytes(range(256)) + b"\r\n", **more), {}, "it says what is no SMTP: "),
    (lambda **more: StrangeServer(b"220-" + b"x" * 100_000_0, **more), {}, "it says what is no SMTP: "),
    (StrangeServer, {"endless": b"220-" + b"banner " * 50 + b"\r\n"}, "it says what is no SMTP: "),
    (StrangeServer, {"endless": b"2", "pause": 0.05}, ""),
    (StrangeServer, {"endless": b"220-x\r\n", "pause": 0.05}, "no answer in time"),
    (lambda **more: StrangeServer(b"554 5.7.1 go away\r\n", **more), {}, "it greets with 554 5.7.1 go away"),
    (lambda **more: StrangeServer(b"220 hello\r\n250-a\r\n251 b\r\n", **more), {}, "it says what is no SMTP: "),
    (lambda **more: StrangeServer(b"220 hello\r\n", **more), {}, "no answer in time"),
]


@pytest.mark.parametrize(("make", "how", "said"), STRANGE)
def test_a_strange_server_is_one_line_within_its_time(
    make: type[StrangeServer], how: dict[str, object], said: str
) -> None:
    with make(**how) as server:  # type: ignore[arg-type]
        for look in (
            lambda: look_at_next_hop(NextHop(server.address), OutTls.MAY, LIMIT)["fault"],
            lambda: look_at_listener(Listen(server.address), limit=LIMIT).fault,
            lambda: deliver(Listen(server.address), "a@b", "c@d", b"text\r\n", limit=LIMIT).fault,
            lambda: look_at_scanner(server.address, "/tmp", LIMIT)["fault"],
        ):
            began = time.monotonic()
            fault = look()
            # With a second for saying goodbye.
            assert time.monotonic() - began < LIMIT + 2
            assert fault
            assert "\n" not in fault
        with pytest.raises(ServerError) as raised:
            greet(server.address, limit=LIMIT)
        assert str(raised.value).startswith(said)


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60), st.sampled_from([b"220 x\r\n", b"250-y\r\n", b"250 SIZE\r\n", b"354 go\r\n"])
        ),
        max_size=8,
    )
)
def test_whatever_a_server_says_is_judged(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    own = made(tmp_path_factory)
    with StrangeServer(b"".join(pieces), cut=True) as server:
        listen, hop = Listen(server.address), NextHop(server.address)
        found = NextHopLook(**look_at_next_hop(hop, OutTls.MAY, LIMIT))
        assert list(judge_next_hop(own, hop, found, access=Access("nobody")))
        judge_listener(own, listen, look_at_listener(listen, limit=LIMIT), found)
        assert isinstance(deliver(listen, "a@b", "c@d", b"text\r\n", limit=LIMIT), Delivery)
        ScannerLook(**look_at_scanner(server.address, "/tmp", LIMIT))


def made(factory: pytest.TempPathFactory) -> Settings:
    path = factory.mktemp("settings") / "conf"
    path.write_text("OutAddress: 10026\nOutTLS: may\n")
    return load(str(path)).settings


def test_nobody_is_there() -> None:
    nobody = TcpAddress("127.0.0.1", free_port())
    for look in (
        look_at_scanner(nobody, "/tmp"),
        look_at_scanner(UnixAddress("/none/clamd"), "/tmp"),
        look_at_next_hop(NextHop(UnixAddress("/none/hop")), OutTls.OFF),
    ):
        assert look["missing"]
        assert not look["refused"]
    assert look_at_listener(Listen(nobody)).fault == "Connection refused"
    assert deliver(Listen(nobody), "a@b", "c@d", b"").fault == "Connection refused"
    with pytest.raises(ServerError, match="Connection refused"):
        greet(nobody)
    with pytest.raises(ServerError):
        greet(TcpAddress("x" * 64 + ".example", 25))


def test_a_server_is_greeted_by_helo_where_it_knows_no_other() -> None:
    with Sink({"EHLO": b"502 5.5.1 what?\r\n"}) as old:
        found = greet(old.address)
        assert (found.banner, found.offers, found.size) == ("sink.example.test ESMTP", {}, 0)
    with Sink(extensions=["SIZE 100", "XCLIENT ADDR PORT", "8BITMIME"]) as new:
        found = greet(new.address)
        assert (found.size, found.offers["xclient"], found.name) == (100, "ADDR PORT", "sink.example.test")
        new.wait_for_end()
        assert new.talks[0].verbs == ["EHLO", "QUIT"]
    with Sink(lmtp=True) as lmtp:
        assert greet(lmtp.address, lmtp=True).size == 104857600


@pytest.mark.parametrize(("size", "octets"), [("", 0), ("0", 0), ("9" * 21, 0), ("x", 0), ("12 13", 12)])
def test_a_size_that_is_none_is_no_limit(size: str, octets: int) -> None:
    assert Greeting("x", {"size": size}).size == octets


def test_a_next_hop_gets_no_message() -> None:
    with Sink() as hop:
        found = NextHopLook(**look_at_next_hop(NextHop(hop.address), OutTls.OFF))
        hop.wait_for_end()
        assert hop.talks[0].verbs == ["EHLO", "MAIL", "RSET", "QUIT"]
        assert (found.mail, found.local) == ("250 2.0.0 Ok", "127.0.0.1")


def test_a_message_is_told_by_the_command_that_decided() -> None:
    with Sink() as hop:
        done = deliver(Listen(hop.address), "a@b", "c@d", b"Subject: x\r\n\r\ntext\r\n")
        assert done == Delivery("the message", 250, "250 2.0.0 Ok: recorded")
        assert hop.messages == [b"Subject: x\r\n\r\ntext\r\n"]
    for verb, command in (("MAIL", "MAIL"), ("RCPT", "RCPT"), ("DATA", "DATA")):
        with Sink({verb: b"550 no\r\n"}) as hop:
            assert deliver(Listen(hop.address), "a@b", "c@d", b"x\r\n") == Delivery(command, 550, "550 no")
            assert hop.messages == []
    with Sink({".": HANG}) as hop:
        done = deliver(Listen(hop.address), "a@b", "c@d", b"x\r\n", limit=LIMIT)
        assert done.fault == "no reply to the message in time"


@pytest.mark.parametrize(("host", "there"), [(None, "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("h", "h")])
def test_all_addresses_are_this_hosts_too(host: str | None, there: str) -> None:
    assert connectable(TcpAddress(host, 25)) == TcpAddress(there, 25)
