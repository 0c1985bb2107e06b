"""How long a certificate is good for."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.ctl.certificate import validity
from tests.support.certificates import make_certificate


def element(tag: int, octets: bytes) -> bytes:
    return bytes([tag, 0x81, len(octets)]) + octets


def certificate(since: bytes, until: bytes, tag: int = 0x17) -> str:
    """Return as much of one as counts."""
    dates = element(tag, since) + element(tag, until)
    signed = element(0xA0, b"\x02\x01\x02") + element(0x02, b"\x01") + 2 * element(0x30, b"") + element(0x30, dates)
    return ssl.DER_cert_to_PEM_cert(element(0x30, element(0x30, signed)))


def test_the_times_are_those_that_openssl_tells(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    since, until = validity("Some text in front\n" + made.certificate.read_text() + made.authority.read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=made.authority.read_text())
    (authority,) = context.get_ca_certs()
    seconds = [ssl.cert_time_to_seconds(str(authority[key])) for key in ("notBefore", "notAfter")]
    told = [datetime.fromtimestamp(second, UTC) for second in seconds]
    assert list(validity(made.authority.read_text())) == told
    assert since < datetime.now(UTC) < until


@pytest.mark.parametrize(
    ("tag", "since", "until", "years"),
    [
        (0x17, b"491231235959Z", b"500101000000Z", (2049, 1950)),
        (0x18, b"20491231235959Z", b"20500101000000Z", (2049, 2050)),
    ],
)
def test_a_year_of_two_digits_has_its_century(tag: int, since: bytes, until: bytes, years: tuple[int, int]) -> None:
    first, second = validity(certificate(since, until, tag))
    assert (first.year, second.year) == years


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-----BEGIN CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n====\n-----END CERTIFICATE-----\n",
        certificate(b"x", b"y"),
        certificate(b"491231235959Z", b"500101000000Z", 0x0C),
    ],
)
def test_what_is_no_certificate_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="certificate"):
        validity(text)


@given(st.binary(max_size=60))
def test_any_octets_are_a_certificate_or_a_value_error(octets: bytes) -> None:
    with pytest.raises(ValueError, match="certificate"):
        validity(ssl.DER_cert_to_PEM_cert(octets))
