"""Which EHLO keywords pass."""

from __future__ import annotations

import pytest

from clamsmtpd.smtp.capabilities import PASSED, filter_ehlo, xclient_attributes


def test_only_listed_keywords_pass_and_the_name_is_ours() -> None:
    lines = (b"hop.example at your service", b"PIPELINING", b"SIZE 100", b"STARTTLS", b"8bitmime", b"AUTH=LOGIN")
    assert filter_ehlo(lines) == b"250-clamsmtpd.localdomain\r\n250-SIZE 100\r\n250-8bitmime\r\n250 AUTH=LOGIN\r\n"


def test_a_reply_of_one_line() -> None:
    assert filter_ehlo((b"hop.example",)) == b"250 clamsmtpd.localdomain\r\n"


@pytest.mark.parametrize(
    "keyword",
    [
        "STARTTLS",
        "PIPELINING",
        "CHUNKING",
        "BINARYMIME",
        "BURL",
        "XEXCH50",
        "XCLIENT",
        "TURN",
        "ATRN",
        "X-NEW",
        "",
        "SIZEX",
    ],
)
def test_what_would_lead_a_message_past_the_scanner_does_not_pass(keyword: str) -> None:
    assert filter_ehlo((b"hop", keyword.encode())) == b"250 clamsmtpd.localdomain\r\n"


def test_each_keyword_has_its_reason() -> None:
    for keyword, reason in PASSED.items():
        assert keyword == keyword.upper()
        assert len(reason) > 10
        assert filter_ehlo((b"hop", keyword)).endswith(b"250 " + keyword + b"\r\n")


def test_what_the_next_hop_takes_with_xclient() -> None:
    assert xclient_attributes((b"hop", b"SIZE", b"xclient name ADDR")) == frozenset({b"NAME", b"ADDR"})
    assert xclient_attributes((b"hop", b"XCLIENT")) == frozenset()
    assert xclient_attributes((b"hop", b"SIZE", b"")) is None
    assert xclient_attributes((b"XCLIENT",)) is None
