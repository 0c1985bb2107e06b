"""What EHLO offers."""

from __future__ import annotations

import pytest

from clamsmtpd.smtp.capabilities import OURS, PASSED, Offers, filter_ehlo

#: How each of our replies begins: with what we offer whatever the next hop does.
START = b"250-clamsmtpd.localdomain\r\n250-PIPELINING\r\n"


def test_only_listed_keywords_pass_and_the_name_is_ours() -> None:
    lines = (b"hop.example at your service", b"PIPELINING", b"SIZE 100", b"STARTTLS", b"8bitmime", b"AUTH=LOGIN")
    assert filter_ehlo(lines) == START + b"250-CHUNKING\r\n250-SIZE 100\r\n250-8bitmime\r\n250 AUTH=LOGIN\r\n"


def test_what_we_offer_to_anybody() -> None:
    assert filter_ehlo((b"hop.example",)) == START + b"250 CHUNKING\r\n"
    assert filter_ehlo((b"hop.example", b"PIPELINING", b"CHUNKING")) == START + b"250 CHUNKING\r\n"


@pytest.mark.parametrize(
    "keyword", ["STARTTLS", "BINARYMIME", "BURL", "XEXCH50", "XCLIENT", "TURN", "ATRN", "X-NEW", "", "SIZEX"]
)
def test_what_would_lead_a_message_past_the_scanner_does_not_pass(keyword: str) -> None:
    assert filter_ehlo((b"hop", keyword.encode())) == START + b"250 CHUNKING\r\n"


def test_each_keyword_has_its_reason() -> None:
    for keyword, reason in PASSED.items():
        assert keyword == keyword.upper()
        assert len(reason) > 10
        # BINARYMIME alone promises what only CHUNKING can keep.
        assert filter_ehlo((b"hop", b"CHUNKING", keyword)).endswith(b"250 " + keyword + b"\r\n")
    assert not PASSED.keys() & OURS.keys()


def test_starttls_is_ours_to_offer() -> None:
    assert filter_ehlo((b"hop",), starttls=True).endswith(b"250 STARTTLS\r\n")


def test_xclient_is_ours_to_offer() -> None:
    offer = b"250 XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT\r\n"
    assert filter_ehlo((b"hop", b"XCLIENT ADDR"), xclient=True).endswith(b"CHUNKING\r\n" + offer)


def test_one_recipient_is_the_limit_whatever_the_next_hop_says() -> None:
    lines = (b"hop", b"LIMITS RCPTMAX=1000", b"SIZE")
    assert filter_ehlo(lines, one_recipient=True).endswith(b"CHUNKING\r\n250-SIZE\r\n250 LIMITS RCPTMAX=1\r\n")
    assert b"RCPTMAX=1000" in filter_ehlo(lines)


def test_offers_are_read_in_any_case() -> None:
    lines = (
        b"hop",
        b"pipelining",
        b"Chunking",
        b"BINARYMIME",
        b"starttls",
        b"size 5",
        b"xclient name ADDR",
        b"XFORWARD",
    )
    assert Offers.read(lines) == Offers(
        pipelining=True,
        chunking=True,
        binarymime=True,
        starttls=True,
        size=5,
        xclient=frozenset({b"NAME", b"ADDR"}),
        xforward=frozenset(),
    )


def test_the_first_line_is_a_name_and_no_offer() -> None:
    assert Offers.read((b"PIPELINING", b"")) == Offers()


def test_binarymime_needs_chunking() -> None:
    assert not Offers.read((b"hop", b"BINARYMIME")).binarymime


@pytest.mark.parametrize("size", [b"SIZE", b"SIZE 0", b"SIZE x", b"SIZE -1", b"SIZE 1" + b"0" * 30])
def test_sizes_that_are_no_limit(size: bytes) -> None:
    assert Offers.read((b"hop", size)).size is None
