"""What is to be said of a scanner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from clamsmtpd.clamd.protocol import signatures_date
from clamsmtpd.ctl.examination.steps import RESTART, State, Step, admission
from clamsmtpd.ctl.findings import is_private, is_same_path
from clamsmtpd.ctl.looks import ScannerLook
from clamsmtpd.ctl.rights import Access
from clamsmtpd.values import Address, UnixAddress

__all__ = ["AGED", "STALE", "judge_scanner"]

#: From what age on signatures are worth a warning, and from what age on they are a fault. ClamAV publishes new ones
#: each day: after three days freshclam has failed several times, and after two weeks what is sent now is missed.
AGED, STALE = timedelta(days=3), timedelta(days=14)


def judge_scanner(
    address: Address, look: ScannerLook, *, access: Access, clamd: Sequence[Address], now: datetime
) -> Iterator[Step]:
    """Yield what is to be said of one clamd.

    ``clamd`` is where the clamd of this host listens by its own settings, nothing if that is not known. ``now`` is
    local time, as clamd's dates are.
    """
    name = f"clamd at {address}"
    if look.fault:
        yield _lost_scanner(name, address, look, access, clamd)
        return
    yield Step(name, State.OK, look.version.partition("/")[0] or "it answers")
    yield _signatures(f"signatures of {name}", look.version, now)
    yield _verdicts(f"verdicts of {name}", look)


def _lost_scanner(name: str, address: Address, look: ScannerLook, access: Access, clamd: Sequence[Address]) -> Step:
    if look.refused:
        mend = "in clamd.conf: LocalSocketMode 666, then systemctl restart clamav-daemon"
        return Step(name, State.FAILED, *admission(access, mend))
    if clamd and is_private(address) and not any(_same(address, place) for place in clamd):
        mend = f"clamd of this host listens elsewhere; write ClamAddress: {clamd[0]}, then {RESTART}"
    elif look.missing:
        mend = "systemctl start clamav-daemon; journalctl -u clamav-daemon says why it does not run"
    elif "SMTP" in look.fault:
        mend = (
            "that is a mail server; write in ClamAddress where clamd listens (LocalSocket or TCPSocket in clamd.conf)"
        )
    else:
        mend = (
            "see clamd's log, and who listens there (ss -lntpx); ClamAddress must be clamd's LocalSocket or TCPSocket"
        )
    return Step(name, State.FAILED, f"nobody listens there: {look.fault}" if look.missing else look.fault, mend)


def _same(address: Address, place: Address) -> bool:
    if isinstance(address, UnixAddress) and isinstance(place, UnixAddress):
        return is_same_path(address.path, place.path)
    return address == place


def _signatures(name: str, version: str, now: datetime) -> Step:
    date = signatures_date(version)
    if date is None:
        return Step(
            name, State.OK, "they have no date, as a database of one's own has none: how old they are is not known"
        )
    age = max(now - date, timedelta())
    finding = f"{age / timedelta(days=1):.1f} days old, of {date:%Y-%m-%d %H:%M}"
    mend = "systemctl status clamav-freshclam, or run freshclam, and see what it says"
    if age >= STALE:
        return Step(name, State.FAILED, f"{finding}: what is sent now may not be known", mend)
    if age >= AGED:
        return Step(name, State.WARNING, f"{finding}: freshclam does not bring new ones", mend)
    return Step(name, State.OK, finding)


def _verdicts(name: str, look: ScannerLook) -> Step:
    found = look.infected.removeprefix("infected:")
    if look.clean.startswith("infected:"):
        virus = look.clean.removeprefix("infected:")
        return Step(
            name,
            State.FAILED,
            f"it finds {virus} in a clean file: all mail would be taken for infected",
            "look for a signature of your own that matches anything, in clamd's DatabaseDirectory",
        )
    if look.clean != "clean":
        return Step(name, State.FAILED, f"it has no verdict on a clean file: {look.clean}", "see clamd's log")
    if look.infected == "clean":
        return Step(
            name,
            State.FAILED,
            "it is blind: it calls the EICAR test file clean",
            "its signatures are missing: freshclam && systemctl restart clamav-daemon",
        )
    if not look.infected.startswith("infected:"):
        return Step(name, State.FAILED, f"it has no verdict on the EICAR test file: {look.infected}", "see clamd's log")
    return Step(name, State.OK, f"it finds the EICAR test file ({found}), and nothing in a clean one")
