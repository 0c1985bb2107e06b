"""How long a certificate is good for (RFC 5280 section 4.1.2.5). Python tells that only of one that it has verified."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

__all__ = ["validity"]

_END = "-----END CERTIFICATE-----"

# Tags of DER (X.690 section 8).
_INTEGER, _UTC_TIME, _GENERALIZED_TIME, _SEQUENCE, _VERSION = 0x02, 0x17, 0x18, 0x30, 0xA0

# A year of two digits is of this century from 00 on, and of the last from 50 (RFC 5280 section 4.1.2.5.1).
_LAST_CENTURY = 50


def validity(pem: str) -> tuple[datetime, datetime]:
    """Return from when and until when the first certificate of a PEM file is good. Raises ValueError if there is none.

    Nothing else of it is looked at.
    """
    begin = pem.find(ssl.PEM_HEADER)
    end = pem.find(_END, begin)
    if begin < 0 or end < 0:
        raise ValueError("it holds no certificate in PEM format")
    try:
        _, certificate = next(_elements(ssl.PEM_cert_to_DER_cert(pem[begin : end + len(_END)])))
        _, signed = next(_elements(certificate))
        # version, serialNumber and signature come first, and issuer, which is a sequence as signature is.
        sequences = (octets for tag, octets in _elements(signed) if tag not in (_VERSION, _INTEGER))
        next(sequences)
        next(sequences)
        (first, since), (second, until) = _elements(next(sequences))
        return _time(first, since), _time(second, until)
    except (ValueError, IndexError, StopIteration):
        raise ValueError("what it holds is no certificate") from None


def _elements(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element. Raises ValueError and IndexError."""
    at = 0
    while at < len(octets):
        tag, length = octets[at], octets[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(octets[at : at + size])
            at += size
        if at + length > len(octets):
            raise ValueError
        yield tag, octets[at : at + length]
        at += length


def _time(tag: int, octets: bytes) -> datetime:
    text = octets.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= _LAST_CENTURY else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
