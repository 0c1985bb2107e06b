"""What is to be said of the daemon itself: where it listens, and what it says when it is asked."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from clamsmtpd.config import Settings
from clamsmtpd.ctl.examination.steps import RESTART, State, Step
from clamsmtpd.ctl.looks import ListenerLook, NextHopLook
from clamsmtpd.ctl.rights import group_name, user_name
from clamsmtpd.smtp import replies
from clamsmtpd.values import Address, Listen, UnixAddress

__all__ = ["UNAVAILABLE", "judge_admin", "judge_listener"]

#: What the daemon says when it serves nobody, and what is to be done about it.
UNAVAILABLE = {
    replies.NEXT_HOP_UNREACHABLE: "the next hop cannot be reached; see above",
    replies.NEXT_HOP_INSECURE: "OutTLS asks for more than the next hop has; see above",
    replies.NEXT_HOP_LOST: "the next hop hangs up; see its log",
    replies.NEXT_HOP_CONFUSED: "the next hop does not speak SMTP; see above",
    replies.TOO_MANY_CONNECTIONS: "raise MaxConnections, or wait",
    replies.SHUTTING_DOWN: "it is being stopped; start it again",
    replies.LOOP: "write in OutAddress where the mail server takes mail back",
}


def judge_listener(settings: Settings, listen: Listen, look: ListenerLook, hop: NextHopLook | None) -> Step:
    """Return what is to be said of who answers where we listen; ``hop`` is what is known of the next hop."""
    name = f"Listen {listen}"
    line = look.said.encode("utf-8", "replace") + b"\r\n"
    if line == replies.LOOP and settings.transparent_proxy:
        return Step(name, State.OK, "the daemon is there; it takes only what the firewall redirects")
    if line in UNAVAILABLE:
        return Step(name, State.FAILED, f"the daemon answers {look.said}", UNAVAILABLE[line])
    if look.refused:
        return Step(name, State.FAILED, f"we may not connect: {look.fault}", "run this as root", unreachable=True)
    if look.fault and not look.said:
        return _lost_daemon(name, look)
    if replies.NAME.decode() not in {look.banner.partition(" ")[0], look.name}:
        same = hop is not None and look.banner and look.banner == hop.banner
        who = "the next hop itself answers" if same else "another server answers"
        return Step(
            name,
            State.FAILED,
            f"{who}: {look.said or look.fault}",
            "it has the daemon's place: see who listens (ss -lntp), and change its address or Listen",
        )
    if look.fault:
        return Step(name, State.FAILED, f"the daemon is there, but {look.fault}", "see the daemon's log")
    return _sound_listener(name, settings, listen, look)


def _lost_daemon(name: str, look: ListenerLook) -> Step:
    if look.missing:
        mend = "systemctl start clamsmtpd; journalctl -u clamsmtpd says why it does not run"
        return Step(name, State.FAILED, f"nobody listens there: {look.fault}", mend, unreachable=True)
    mend = "see the daemon's log, and who listens there (ss -lntpx)"
    return Step(name, State.FAILED, look.fault, mend, unreachable=True)


def _sound_listener(name: str, settings: Settings, listen: Listen, look: ListenerLook) -> Step:
    finding = "the daemon is there"
    if look.socket is not None:
        uid, gid, mode = look.socket
        finding += f"; its socket is {user_name(uid)}:{group_name(gid)} {mode:04o}"
        if listen.mode is not None and mode != listen.mode:
            return Step(
                name,
                State.WARNING,
                f"{finding}, and the settings say mode={listen.mode:04o}",
                f"{RESTART}, or with systemd's socket set SocketMode={listen.mode:04o}",
            )
    if "starttls" in look.offers:
        finding += "; it offers STARTTLS"
    elif settings.tls_certificate is not None:
        return Step(
            name,
            State.WARNING,
            f"{finding}; it does not offer STARTTLS, though the settings give TLSCertificate",
            f"the daemon has other settings: systemctl reload clamsmtpd, or {RESTART}",
        )
    return Step(name, State.OK, finding)


def judge_admin(address: Address, status: int, told: dict[str, Any], fault: str, mode: int | None) -> Step:
    """Return what is to be said of the answer to /readyz; ``mode`` is that of its socket."""
    name = f"Admin {address}"
    if fault:
        what, _, mend = fault.rpartition("; ")
        return Step(name, State.FAILED, what or fault, mend)
    if status != HTTPStatus.OK:
        return Step(name, State.FAILED, f"it is not ready ({status}): {_troubles(told)}", "see the steps above")
    if isinstance(address, UnixAddress) and mode is not None and mode & 0o006:
        return Step(
            name,
            State.WARNING,
            f"the daemon is ready; and all users may ask it about messages (mode {mode:04o})",
            f"write Admin: {address} mode=0660, with owner=USER:GROUP, then {RESTART}",
        )
    return Step(name, State.OK, "the daemon is ready: it tried scanners and next hop itself")


def _troubles(told: dict[str, Any]) -> str:
    parts = told.get("parts")
    if not isinstance(parts, list):
        return str(told.get("text", told))[:500]
    return "; ".join(
        f"{part.get('part')}: {part.get('trouble')}" for part in parts if isinstance(part, dict) and part.get("trouble")
    )
