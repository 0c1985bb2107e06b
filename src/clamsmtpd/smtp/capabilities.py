"""What EHLO and LHLO offer: what of the next hop's reaches the client, and what is ours (RFC 5321 section 4.1.1.1).

Both are allow-lists: what nobody here has thought about is not offered, for a keyword that opens another
way for a message would lead it past the scanner.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from clamsmtpd.smtp import replies
from clamsmtpd.smtp.identity import XCLIENT_ATTRIBUTES

__all__ = ["OURS", "PASSED", "Offers", "filter_ehlo"]

#: Keyword of the next hop to the reason why it works end to end through the filter.
PASSED = {
    b"8BITMIME": "the octets of a message pass unchanged (RFC 6152)",
    b"AUTH": "the dialogue is passed on line by line, unread (RFC 4954)",
    b"BINARYMIME": "where the next hop has CHUNKING too, so that no octet is ever changed (RFC 3030)",
    b"DELIVERBY": "a parameter of MAIL, passed on as it came (RFC 2852)",
    b"DSN": "parameters of MAIL and RCPT, passed on as they came (RFC 3461)",
    b"ENHANCEDSTATUSCODES": "replies are passed on as they came, and ours have the codes too (RFC 2034)",
    b"ETRN": "a command with one reply and no message (RFC 1985)",
    b"EXPN": "a command with one reply and no message (RFC 5321 section 4.1.1.7)",
    b"HELP": "a command with one reply and no message (RFC 5321 section 4.1.1.8)",
    b"LIMITS": "numbers that hold for a transaction through us as well (RFC 9422)",
    b"MT-PRIORITY": "a parameter of MAIL, passed on as it came (RFC 6710)",
    b"SIZE": "the next hop's own limit, which holds while the message is received (RFC 1870)",
    b"SMTPUTF8": "addresses and header fields pass unchanged (RFC 6531)",
    b"VRFY": "a command with one reply and no message (RFC 5321 section 4.1.1.6)",
    b"XFORWARD": "passed on, and noted for the hook (Postfix XFORWARD_README)",
}

#: Keyword that we offer, whatever the next hop does, to the reason why that works.
OURS = {
    b"PIPELINING": "commands wait here until the next hop can take them, replies keep their order (RFC 2920)",
    b"CHUNKING": "a message is whole before it goes on, by BDAT or by DATA (RFC 3030)",
    b"STARTTLS": "with a certificate: TLS ends here, and begins anew towards the next hop (RFC 3207)",
    b"XCLIENT": "to clients that are trusted: who the client is, we use and pass on (Postfix XCLIENT_README)",
}


# A next hop says the same in every dialogue, but for the first line, which may greet the client.
_CACHED = 16


@dataclass(frozen=True, slots=True)
class Offers:
    """What the next hop's last reply to EHLO or LHLO offers, as far as it changes what we do ourselves.

    ``size`` is the largest message in octets, None where there is no limit. ``xclient`` and ``xforward`` are the
    names of the attributes that those commands may have.
    """

    pipelining: bool = False
    chunking: bool = False
    binarymime: bool = False
    starttls: bool = False
    size: int | None = None
    xclient: frozenset[bytes] = frozenset()
    xforward: frozenset[bytes] = frozenset()

    @classmethod
    def read(cls, lines: tuple[bytes, ...]) -> Offers:
        """Understand the text lines of a reply to EHLO; the first is the server's name."""
        return cls._read(lines[1:])

    @classmethod
    @functools.lru_cache(maxsize=_CACHED)
    def _read(cls, lines: tuple[bytes, ...]) -> Offers:
        found: dict[bytes, list[bytes]] = {}
        for line in lines:
            keyword, *words = line.upper().split() or [b""]
            found.setdefault(keyword, words)
        chunking = b"CHUNKING" in found
        size = found.get(b"SIZE", [])
        return cls(
            pipelining=b"PIPELINING" in found,
            chunking=chunking,
            binarymime=chunking and b"BINARYMIME" in found,
            starttls=b"STARTTLS" in found,
            # RFC 1870 section 3: no number, or zero, is no limit.
            size=(int(size[0]) or None) if size and size[0].isdigit() and len(size[0]) <= _DIGITS_MAX else None,
            xclient=frozenset(found.get(b"XCLIENT", ())),
            xforward=frozenset(found.get(b"XFORWARD", ())),
        )


# RFC 1870 section 4: a size has at most twenty digits.
_DIGITS_MAX = 20


def filter_ehlo(
    lines: tuple[bytes, ...], *, starttls: bool = False, xclient: bool = False, one_recipient: bool = False
) -> bytes:
    """Turn the text lines of the next hop's reply to EHLO or LHLO into our reply to the client.

    The first line, which names the server, becomes ours; of the others, those pass whose keyword is in
    :data:`PASSED`. ``AUTH=`` is how the drafts of RFC 4954 wrote ``AUTH``; old clients want it.
    ``one_recipient``: there is room for one in each transaction, whatever limits the next hop has.
    """
    return _filter(lines[1:], starttls=starttls, xclient=xclient, one_recipient=one_recipient)


@functools.lru_cache(maxsize=_CACHED)
def _filter(lines: tuple[bytes, ...], *, starttls: bool, xclient: bool, one_recipient: bool) -> bytes:
    barred = set()
    if not Offers.read((b"", *lines)).binarymime:
        barred.add(b"BINARYMIME")
    if one_recipient:
        barred.add(b"LIMITS")
    kept = [replies.NAME, b"PIPELINING", b"CHUNKING"]
    for line in lines:
        keyword = line.replace(b"=", b" ", 1).split(b" ", 1)[0].upper()
        if keyword in PASSED and keyword not in barred:
            kept.append(line)
    if one_recipient:
        kept.append(b"LIMITS RCPTMAX=1")
    if starttls:
        kept.append(b"STARTTLS")
    if xclient:
        kept.append(b"XCLIENT " + b" ".join(XCLIENT_ATTRIBUTES))
    return b"".join(b"250-%b\r\n" % line for line in kept[:-1]) + b"250 %b\r\n" % kept[-1]
