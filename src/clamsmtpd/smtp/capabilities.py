"""Which EHLO keywords of the next hop reach the client, each with its reason (RFC 5321 section 4.1.1.1).

It is an allow-list: what nobody here has thought about is not offered, for a keyword that opens another
way for a message would lead it past the scanner.
"""

from __future__ import annotations

from clamsmtpd.smtp import replies

__all__ = ["PASSED", "filter_ehlo", "xclient_attributes"]

#: Keyword to the reason why it works end to end through the filter.
PASSED = {
    b"8BITMIME": "the octets of a message pass unchanged (RFC 6152)",
    b"AUTH": "the dialogue is passed on line by line, unread (RFC 4954)",
    b"DELIVERBY": "a parameter of MAIL, passed on as it came (RFC 2852)",
    b"DSN": "parameters of MAIL and RCPT, passed on as they came (RFC 3461)",
    b"ENHANCEDSTATUSCODES": "replies are passed on as they came, and ours have the codes too (RFC 2034)",
    b"ETRN": "a command with one reply and no message (RFC 1985)",
    b"EXPN": "a command with one reply and no message (RFC 5321 section 4.1.1.7)",
    b"HELP": "a command with one reply and no message (RFC 5321 section 4.1.1.8)",
    b"LIMITS": "numbers that hold for a transaction through us as well (RFC 9422)",
    b"MT-PRIORITY": "a parameter of MAIL, passed on as it came (RFC 6710)",
    b"SIZE": "the next hop's own limit, and a parameter of MAIL (RFC 1870)",
    b"SMTPUTF8": "addresses and header fields pass unchanged (RFC 6531)",
    b"VRFY": "a command with one reply and no message (RFC 5321 section 4.1.1.6)",
    b"XFORWARD": "passed on, and noted for the hook (Postfix XFORWARD_README)",
}


def filter_ehlo(lines: tuple[bytes, ...]) -> bytes:
    """Turn the text lines of the next hop's EHLO reply into our reply to the client.

    The first line, which names the server, becomes ours; of the others, those pass whose keyword
    is in :data:`PASSED`. ``AUTH=`` is how the drafts of RFC 4954 wrote ``AUTH``; old clients want it.
    """
    kept = [replies.NAME]
    kept += [line for line in lines[1:] if line.replace(b"=", b" ", 1).split(b" ", 1)[0].upper() in PASSED]
    return b"".join(b"250-%b\r\n" % line for line in kept[:-1]) + b"250 %b\r\n" % kept[-1]


def xclient_attributes(lines: tuple[bytes, ...]) -> frozenset[bytes] | None:
    """Return the attribute names that the next hop takes with XCLIENT, None if it offers no XCLIENT."""
    for line in lines[1:]:
        words = line.upper().split()
        if words and words[0] == b"XCLIENT":
            return frozenset(words[1:])
    return None
