"""The story of one message, from its last octet to the decision about it. There is no SMTP in it."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from clamsmtpd import hooks
from clamsmtpd.account import Account, Tag
from clamsmtpd.clamd.client import EarlyScan
from clamsmtpd.clamd.course import Course
from clamsmtpd.config import Settings
from clamsmtpd.culprit import Culprit, Culprits
from clamsmtpd.headers import UNTRUSTED, ForgedFields, HeaderTemplate, OwnFields
from clamsmtpd.hooks import HookRunner
from clamsmtpd.log import MessageLine, describe, escape
from clamsmtpd.metrics import (
    CLEAN,
    INFECTED,
    OCTETS,
    OVERSIZE,
    PASSED,
    TURNED_AWAY,
    UNSCANNED,
    Failure,
    Metrics,
    count_failure,
)
from clamsmtpd.policy import Policy
from clamsmtpd.quarantine.index import Entry
from clamsmtpd.quarantine.keeper import Keeper
from clamsmtpd.scans import Scans
from clamsmtpd.spool import Spool
from clamsmtpd.values import (
    Bounce,
    Clean,
    Decision,
    Defer,
    Deliver,
    Envelope,
    Ground,
    Infected,
    Oversize,
    Unjudged,
    Unscanned,
    Verdict,
)

__all__ = ["FORGED_MAX", "Inspector", "Route"]

#: Header fields of one message that pretend to be ours and are renamed. No chain of filters is as long, and each of
#: them costs some memory.
FORGED_MAX = 100

_log = logging.getLogger("clamsmtpd")


@dataclass(slots=True)
class Route:
    """The way that a message takes through us, as far as it is known.

    ``tag`` is what the log calls the connection, and the message at hand; ``client`` and ``local`` are the two ends of
    the client's connection, ``server`` is the next hop, each as an address without port.
    """

    tag: Tag
    client: str
    local: str
    server: str


def _now() -> datetime:
    return datetime.now(UTC).astimezone()


def _say(verdict: Verdict) -> str:
    match verdict:
        case Clean():
            return "clean"
        case Infected(name):
            return name
        case Unscanned(reason) | Oversize(reason):
            return f"none; {escape(reason)}"


def _entry(virus: str, envelope: Envelope, route: Route, account: Account) -> Entry:
    """Return what is written down of a message in quarantine."""
    match account.decision:
        case Bounce():
            action = "bounced"
        case Deliver():
            action = "passed"
        case _:
            action = "dropped"
    return Entry(
        "",
        time.time(),
        message=account.tag.message,
        sender=envelope.sender,
        recipients=envelope.recipients,
        remote=envelope.remote,
        client=route.client,
        virus=virus,
        action=action,
    )


class Inspector:
    """Holds what the inspection of every message needs.

    ``clock`` gives an aware local time. Messages are counted in ``row``, one of :class:`Metrics`.
    """

    __slots__ = (
        "_clock",
        "_culprits",
        "_hooks",
        "_keeper",
        "_own",
        "_policy",
        "_row",
        "_scans",
        "_settings",
        "_template",
    )

    def __init__(
        self,
        settings: Settings,
        scans: Scans,
        hook_runner: HookRunner,
        clock: Callable[[], datetime] = _now,
        row: memoryview | None = None,
        *,
        keeper: Keeper | None = None,
        culprits: Culprits | None = None,
    ) -> None:
        self._settings = settings
        self._culprits = culprits
        self._keeper = keeper
        self._scans = scans
        self._hooks = hook_runner
        self._policy = Policy(
            action=settings.action,
            actions_for=settings.actions_for,
            oversize=settings.oversize,
            scan_failure=settings.scan_failure,
        )
        self._template = HeaderTemplate(settings.header)
        self._own = OwnFields(settings.header)
        self._clock = clock
        self._row = Metrics().row(0) if row is None else row

    def admits(self, tag: Tag) -> bool:
        """Tell whether a message that comes now can be judged in time; if not, it need not be sent.

        ``tag`` is what the log calls the connection.
        """
        # One that passes unscanned if need be can always come.
        if self._settings.scan_failure is Unjudged.PASS or self._scans.admits():
            return True
        self._row[TURNED_AWAY] += 1
        # In the text that programs know there is no connection.
        _log.warning("message refused before its text: no scanner could judge it in time", extra={"tag": tag})
        return False

    def expect(self, octets: int | None) -> None:
        """Learn how large a message the next hop takes: the scanners should look at as much."""
        self._scans.expect(octets)

    def begin(self, message: Spool) -> EarlyScan | None:
        """Have a message scanned while it comes in, where that saves time; cancel it if the message is given up."""
        return self._scans.begin(message)

    async def inspect(
        self,
        message: Spool,
        envelope: Envelope,
        route: Route,
        *,
        stuffed: bool,
        header: int,
        early: EarlyScan | None = None,
        account: Account | None = None,
    ) -> Decision:
        """Scan a whole message, log its one line, keep and report a virus, and decide.

        ``stuffed`` and ``header`` are those of :class:`smtp.events.Inspect`. Whatever goes wrong on this side ends
        in :class:`Defer`: the client keeps its message. So does a message that its client has abandoned meanwhile; its
        verdict is kept for when it comes again, and nothing else is done. All that is learnt goes into ``account``.
        """
        verdict: Verdict
        decision: Decision
        account = Account(route.tag) if account is None else account
        # The route's may be another one when the verdict comes.
        tag = account.tag
        account.envelope, account.size = envelope, message.size
        try:
            verdict = await self._scan(message, early, account.course, stuffed=stuffed)
            template = self._template
            field = template.render(client=route.client, local=route.local, clock=self._clock)
            decision = self._policy.decide(verdict, Deliver(field, on_top=template.on_top))
        except OSError as error:
            # No failure of a scanner: what we may have lost some of does not go on, whatever ScanFailure says.
            verdict = Unscanned(f"spool in {self._settings.temp_directory}: {error}")
            decision = Defer()
            count_failure(self._row, Failure.STORAGE)
        account.judged = asyncio.get_running_loop().time()
        account.verdict, account.decision = verdict, decision
        if message.abandoned:
            _log.info("%s: the verdict came after the client had left: %s", tag, _say(verdict))
            return Defer()
        unjudged = isinstance(verdict, Unscanned | Oversize)
        passed = unjudged and isinstance(decision, Deliver)
        self._count(verdict, message, passed=passed)
        if _log.isEnabledFor(logging.INFO):
            _log.info("%s: %s", tag, MessageLine(envelope, verdict, passed=passed))
        if isinstance(verdict, Unscanned | Oversize):
            what = "no verdict, delivered unscanned" if passed else "no verdict"
            _log.warning("%s: %s: %s", tag, what, escape(verdict.reason))
        elif isinstance(verdict, Infected):
            try:
                self._report(verdict.name, message, envelope, route, account)
            except OSError as error:
                count_failure(self._row, Failure.QUARANTINE)
                account.decision = Defer()
                # It was to be kept. Had we dropped it, it would exist nowhere any more.
                _log.error("%s: cannot quarantine in %s: %s", tag, self._settings.temp_directory, error)
                return Defer()
        if header and isinstance(decision, Deliver):
            return await self._rename_forged(decision, message, header, tag)
        return decision

    async def _rename_forged(self, delivery: Deliver, message: Spool, header: int, tag: Tag) -> Decision:
        """Have the header fields renamed that pretend to be ours; ``header`` is where they may be."""
        forged = ForgedFields(self._own)
        at = 0
        try:
            while True:
                piece = message.read(at, header - at)
                if not piece:
                    raise OSError(errno.EIO, "the spool file ended early")
                forged.feed(piece)
                at += len(piece)
                if at >= header or len(forged.offsets) > FORGED_MAX:
                    break
                # A header section may be as long as a message: others get their turn.
                await asyncio.sleep(0)
        except OSError as error:
            _log.error("%s: cannot read the spool: %s", tag, describe(error))
            return Defer()
        offsets = forged.offsets
        if not offsets:
            return delivery
        if len(offsets) > FORGED_MAX:
            _log.warning("%s: message refused: more than %d fields pretend to be ours", tag, FORGED_MAX)
            return Bounce(Ground.FORGERY)
        _log.debug("%s: renamed %d fields that pretend to be ours", tag, len(offsets))
        return Deliver(delivery.field, delivery.on_top, tuple((offset, UNTRUSTED) for offset in offsets))

    def _count(self, verdict: Verdict, message: Spool, *, passed: bool) -> None:
        match verdict:
            case Clean():
                self._row[CLEAN] += 1
            case Infected():
                self._row[INFECTED] += 1
            case Unscanned():
                self._row[UNSCANNED] += 1
            case Oversize():
                self._row[OVERSIZE] += 1
        if passed:
            self._row[PASSED] += 1
        self._row[OCTETS] += message.size

    async def _scan(self, message: Spool, early: EarlyScan | None, course: Course, *, stuffed: bool) -> Verdict:
        """Return the verdict. Raises OSError for a fault of our own storage."""
        message.seal(stuffed=stuffed)
        return await self._scans.scan(message, early, course)

    def _report(self, virus: str, message: Spool, envelope: Envelope, route: Route, account: Account) -> None:
        """Keep the infected message, have the part that has the virus looked for, and then run the hook.

        Each where the settings say so. Raises OSError.
        """
        settings = self._settings
        kept: str | None = None
        if settings.quarantine:
            kept = account.kept = message.quarantine()
            _log.info("%s: quarantined virus file as: %s", account.tag, kept)
            if self._keeper is not None:
                self._keeper.record(kept, _entry(virus, envelope, route, account))

        def tell(culprit: Culprit | None) -> None:
            attachment, sha256 = (culprit.part.label, culprit.sha256) if culprit is not None else (None, None)
            if kept is not None and self._keeper is not None and attachment is not None and sha256 is not None:
                self._keeper.note_culprit(kept, attachment, sha256)
            if settings.virus_action:
                environment = hooks.environment(
                    envelope,
                    client=route.client,
                    server=route.server,
                    temp_directory=settings.temp_directory,
                    quarantine_file=kept,
                    virus=virus,
                    attachment=attachment,
                    sha256=sha256,
                )
                self._hooks.start(settings.virus_action, environment, account.tag)

        if self._culprits is None:
            tell(None)
        else:
            self._culprits.search(message, virus, account.tag, tell)
