"""The story of one message, from its last octet to the decision about it. There is no SMTP in it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from clamsmtpd import hooks, policy
from clamsmtpd.clamd.client import EarlyScan
from clamsmtpd.config import Settings
from clamsmtpd.headers import HeaderTemplate
from clamsmtpd.hooks import HookRunner
from clamsmtpd.log import escape, message_line
from clamsmtpd.metrics import CLEAN, INFECTED, OCTETS, OVERSIZE, TURNED_AWAY, UNSCANNED, Metrics
from clamsmtpd.scans import Scans
from clamsmtpd.spool import Spool
from clamsmtpd.values import Clean, Decision, Defer, Deliver, Envelope, Infected, Oversize, Unjudged, Unscanned, Verdict

__all__ = ["Inspector", "Route"]

_log = logging.getLogger("clamsmtpd")


@dataclass(slots=True)
class Route:
    """The way that a message takes through us, as far as it is known.

    ``tag`` is the connection's id in the log; ``client`` and ``local`` are the two ends of the client's
    connection, ``server`` is the next hop, each as an address without port.
    """

    tag: str
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


class Inspector:
    """Holds what the inspection of every message needs.

    ``clock`` gives an aware local time. Messages are counted in ``row``, one of :class:`Metrics`.
    """

    __slots__ = ("_clock", "_hooks", "_row", "_scans", "_settings", "_template")

    def __init__(
        self,
        settings: Settings,
        scans: Scans,
        hook_runner: HookRunner,
        clock: Callable[[], datetime] = _now,
        row: memoryview | None = None,
    ) -> None:
        self._settings = settings
        self._scans = scans
        self._hooks = hook_runner
        self._template = HeaderTemplate(settings.header)
        self._clock = clock
        self._row = Metrics().row(0) if row is None else row

    def admits(self) -> bool:
        """Tell whether a message that comes now can be judged in time; if not, it need not be sent."""
        # One that passes unscanned if need be can always come.
        if self._settings.scan_failure is Unjudged.PASS or self._scans.admits():
            return True
        self._row[TURNED_AWAY] += 1
        _log.warning("message refused before its text: no scanner could judge it in time")
        return False

    def begin(self, message: Spool) -> EarlyScan | None:
        """Have a message scanned while it comes in, where that saves time; cancel it if the message is given up."""
        return self._scans.begin(message)

    async def inspect(
        self, message: Spool, envelope: Envelope, route: Route, *, stuffed: bool, early: EarlyScan | None = None
    ) -> Decision:
        """Scan a whole message, log its one line, keep and report a virus, and decide.

        Whatever goes wrong on this side ends in :class:`Defer`: the client keeps its message. So does a message that
        its client has abandoned meanwhile; its verdict is kept for when it comes again, and nothing else is done.
        """
        verdict = await self._scan(message, early, stuffed=stuffed)
        if message.abandoned:
            _log.info("%s: the verdict came after the client had left: %s", route.tag, _say(verdict))
            return Defer()
        self._count(verdict, message)
        if _log.isEnabledFor(logging.INFO):
            _log.info("%s: %s", route.tag, message_line(envelope, verdict))
        if isinstance(verdict, Unscanned | Oversize):
            _log.warning("%s: no verdict: %s", route.tag, escape(verdict.reason))
        elif isinstance(verdict, Infected):
            try:
                self._report(verdict.name, message, envelope, route)
            except OSError as error:
                # It was to be kept. Had we dropped it, it would exist nowhere any more.
                _log.error("%s: cannot quarantine in %s: %s", route.tag, self._settings.temp_directory, error)
                return Defer()
        template = self._template
        field = template.render(client=route.client, local=route.local, clock=self._clock)
        return policy.decide(verdict, self._settings.action, Deliver(field, on_top=template.on_top))

    def _count(self, verdict: Verdict, message: Spool) -> None:
        match verdict:
            case Clean():
                self._row[CLEAN] += 1
            case Infected():
                self._row[INFECTED] += 1
            case Unscanned():
                self._row[UNSCANNED] += 1
            case Oversize():
                self._row[OVERSIZE] += 1
        self._row[OCTETS] += message.size

    async def _scan(self, message: Spool, early: EarlyScan | None, *, stuffed: bool) -> Verdict:
        try:
            message.seal(stuffed=stuffed)
            return await self._scans.scan(message, early)
        except OSError as error:
            return Unscanned(f"spool in {self._settings.temp_directory}: {error}")

    def _report(self, virus: str, message: Spool, envelope: Envelope, route: Route) -> None:
        """Keep the infected message and run the hook, where the settings say so. Raises OSError."""
        settings = self._settings
        kept: str | None = None
        if settings.quarantine:
            kept = message.quarantine()
            _log.info("%s: quarantined virus file as: %s", route.tag, kept)
        if settings.virus_action:
            environment = hooks.environment(
                envelope,
                client=route.client,
                server=route.server,
                temp_directory=settings.temp_directory,
                quarantine_file=kept,
                virus=virus,
            )
            self._hooks.start(settings.virus_action, environment, route.tag)
