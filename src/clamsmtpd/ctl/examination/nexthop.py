"""What is to be said of the next hop."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clamsmtpd.config import Settings
from clamsmtpd.ctl.examination.steps import RESTART, State, Step, admission
from clamsmtpd.ctl.looks import NextHopLook
from clamsmtpd.ctl.mta_settings import network_of, recognise
from clamsmtpd.ctl.rights import Access
from clamsmtpd.smtp import replies
from clamsmtpd.values import NextHop, OutTls

__all__ = ["judge_next_hop"]

#: Keywords that matter to mail, in the order in which they are told.
_TOLD = ("size", "pipelining", "8bitmime", "chunking", "smtputf8", "dsn", "starttls", "auth", "xforward", "xclient")


def judge_next_hop(settings: Settings, hop: NextHop, look: NextHopLook, *, access: Access) -> Iterator[Step]:
    """Yield what is to be said of the next hop; ``hop`` is where it was looked for."""
    name = f"next hop {hop}"
    if look.fault:
        yield _lost_hop(name, hop, look, access)
        return
    own = replies.NAME.decode()
    if own in {look.name, look.banner.partition(" ")[0]}:
        yield Step(
            name,
            State.FAILED,
            "it is this filter, or another one like it: mail would go in a circle",
            "write in OutAddress where the mail server takes mail back, not a Listen",
        )
        return
    offers = [keyword for keyword in _TOLD if keyword in look.offers or (keyword == "starttls" and look.starttls)]
    told = ", ".join(
        f"SIZE {look.offers['size']}".strip() if keyword == "size" else keyword.upper() for keyword in offers
    )
    yield Step(name, State.OK, f'it greets with "{look.banner}" and offers {told or "nothing"}')
    yield _tls(settings.out_tls, look)
    if look.mail and not look.mail.startswith("2"):
        yield _refused_mail(look)
    yield _identity(settings, hop, look)


def _lost_hop(name: str, hop: NextHop, look: NextHopLook, access: Access) -> Step:
    if look.refused:
        return Step(name, State.FAILED, *admission(access, f"let user {access.who} connect to {hop.address}"))
    if look.missing:
        return Step(
            name,
            State.FAILED,
            f"nobody listens there: {look.fault}",
            "start the mail server, or correct OutAddress; for the service that takes mail back: "
            "clamsmtpctl doctor --settings-for postfix",
        )
    if "LHLO with 5" in look.fault:
        return Step(name, State.FAILED, look.fault, f"it speaks SMTP: write OutAddress: {hop.address}, without lmtp:")
    if "LO with 5" in look.fault and re.search("LMTP|LHLO", look.banner + look.fault, re.IGNORECASE):
        return Step(name, State.FAILED, look.fault, f"it speaks LMTP: write OutAddress: lmtp:{hop.address}")
    if "no SMTP" in look.fault:
        return Step(name, State.FAILED, look.fault, "write in OutAddress where the mail server listens")
    return Step(name, State.FAILED, look.fault, "see the next hop's log: why does it not serve us?")


def _tls(level: OutTls, look: NextHopLook) -> Step:
    name = f"OutTLS {level.value}"
    if level is OutTls.OFF:
        return Step(name, State.OK, "nothing is encrypted" + (", though STARTTLS is offered" if look.starttls else ""))
    if look.tls:
        verified = ", with a certificate that is valid for it" if level is OutTls.VERIFY else ""
        return Step(name, State.OK, f"TLS works{verified}")
    why = look.tls_fault if look.starttls else "the next hop does not offer STARTTLS"
    if level is OutTls.MAY:
        mend = "" if not look.starttls else "see the next hop's log; OutTLS: off does not try"
        return Step(name, State.WARNING if look.starttls else State.OK, f"{why}: mail goes without TLS", mend)
    if not look.starttls:
        mend = (
            "give the next hop a certificate (Postfix: smtpd_tls_security_level=may below its service), or OutTLS: may"
        )
    elif level is OutTls.VERIFY:
        mend = (
            "name in OutAddress the host that the certificate is for, and add its authority (SSL_CERT_FILE, or "
            "update-ca-certificates); OutTLS: encrypt does not verify"
        )
    else:
        mend = "see the next hop's log"
    return Step(name, State.FAILED, f"{why}: no mail is delivered", mend)


def _refused_mail(look: NextHopLook) -> Step:
    name = "mail to the next hop"
    if look.mail.startswith("530") and "STARTTLS" in look.mail.upper():
        mend = f"write OutTLS: encrypt, then {RESTART}"
    elif look.mail.startswith("530"):
        mend = "let it take mail from us without a password (Postfix: mynetworks)"
    else:
        mend = "see the next hop's log"
    return Step(name, State.FAILED, f"it answers MAIL with {look.mail}", mend)


def _identity(settings: Settings, hop: NextHop, look: NextHopLook) -> Step:
    """Tell whether the next hop learns who the client is."""
    network = network_of(look.local)
    where = f"below the service {hop.address} in master.cf, then postfix reload"
    if settings.xclient:
        if "xclient" in look.offers:
            return Step("XClient", State.OK, f"the next hop lets us say who the client is: {look.offers['xclient']}")
        return Step(
            "XClient",
            State.FAILED,
            "the next hop does not offer XCLIENT to us: for it, all mail comes from this filter",
            f"Postfix: -o smtpd_authorized_xclient_hosts={network} {where}; other mail servers do not have it, write "
            "XClient: off",
        )
    if "xforward" in look.offers:
        return Step("XFORWARD", State.OK, "the next hop is told who the client is, for its log")
    if recognise(look.banner) == "postfix":
        return Step(
            "XFORWARD",
            State.WARNING,
            "Postfix does not offer XFORWARD to us: in its log, all mail comes from this filter",
            f"-o smtpd_authorized_xforward_hosts={network} {where}",
        )
    return Step("XFORWARD", State.SKIPPED, "the next hop does not have it; only Postfix does")
