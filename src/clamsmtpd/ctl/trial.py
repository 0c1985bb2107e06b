"""Saved messages on the way of real ones: through the very parts of the daemon that judge, and no further."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from clamsmtpd.account import Account, Tag
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.config import Settings
from clamsmtpd.ctl.saved import Saved, pieces
from clamsmtpd.hooks import HookRunner
from clamsmtpd.inspection import FORGED_MAX, Inspector, Route
from clamsmtpd.metrics import ROW_SIZE, Metrics
from clamsmtpd.policy import Policy
from clamsmtpd.scans import Scans
from clamsmtpd.smtp import replies
from clamsmtpd.smtp.message import Message
from clamsmtpd.smtp.relay import reply_to
from clamsmtpd.spool import Spool
from clamsmtpd.values import Bounce, Clean, Decision, Deliver, Envelope, Ground, Infected, Oversize, Unjudged, Unscanned
from clamsmtpd.verdicts import LATEST_SIZE, REGION_SIZE, Verdicts

__all__ = ["NoScannerError", "Result", "Trial"]

#: Seconds to wait for a scanner that does not say that it cannot be used.
PATIENCE = 30.0

# Seconds between two looks at what has become of the scanners.
_LOOK = 0.05

_NAME = "clamsmtpctl"


class NoScannerError(Exception):
    """None can be used; ``str()`` is one line that says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """What would become of one message, and why.

    ``outcome`` is deliver, drop, bounce, defer, or unreadable; ``verdict`` is clean, infected, oversize, unscanned, or
    empty if it came to none. ``setting`` is the one that decided, as it is written in the settings file, and ``why``
    what else there is to say. ``reply`` is what the client would be told, where that is ours to say; ``field`` is the
    header field that would be added, and ``renamed`` the number of those that pretend to be ours. ``size`` is in
    octets as on the wire, ``seconds`` what the scan took.
    """

    file: str
    outcome: str
    verdict: str = ""
    virus: str = ""
    reply: str = ""
    field: str = ""
    renamed: int = 0
    setting: str = ""
    why: str = ""
    size: int = 0
    scanner: str = ""
    seconds: float | None = None

    @property
    def well(self) -> bool:
        """Whether it is clean and would be delivered."""
        return self.outcome == "deliver" and self.verdict == "clean"


class Trial:
    """Judges messages by ``settings``; an asynchronous context manager. Nothing is delivered, kept, or told to a hook.

    Raises NoScannerError where none can be used.
    """

    def __init__(self, settings: Settings, patience: float = PATIENCE) -> None:
        # Where only the daemon may write, a large message waits elsewhere: it is nobody's but ours.
        place = settings.temp_directory
        if not os.access(place, os.W_OK | os.X_OK):
            place = tempfile.gettempdir()
        self._settings = dataclasses.replace(
            settings, temp_directory=place, quarantine=False, virus_action=None, debug_files=False
        )
        self._policy = Policy(
            action=settings.action,
            actions_for=settings.actions_for,
            oversize=settings.oversize,
            scan_failure=settings.scan_failure,
        )
        self._patience = patience
        self._row = Metrics(memoryview(bytearray(ROW_SIZE))).row(0)
        self._pool = Pool(settings.clam_addresses, time_out=settings.time_out, row=self._row, temp_directory=place)

    async def __aenter__(self) -> Self:
        self._pool.start()
        try:
            await self._wait_for_scanner()
        except BaseException:
            await self._close()
            raise
        verdicts = Verdicts(bytearray(LATEST_SIZE + REGION_SIZE))
        scans = Scans(self._pool, verdicts, self._row)
        self._inspector = Inspector(self._settings, scans, HookRunner(), row=self._row)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        self._pool.close()
        # What was cancelled hears of it now.
        await asyncio.sleep(0)

    async def _wait_for_scanner(self) -> None:
        usable = asyncio.ensure_future(self._pool.usable())
        now = asyncio.get_running_loop().time
        deadline = now() + self._patience
        try:
            while not (await asyncio.wait([usable], timeout=_LOOK))[0]:
                told = self._pool.describe()
                # The daemon would wait for one. Who has asked here would rather know.
                if all(one["fault"] for one in told) or now() >= deadline:
                    why = "; ".join(f"clamd at {one['address']}: {one['fault'] or 'no answer'}" for one in told)
                    raise NoScannerError(f"no scanner can be used: {why}")
        finally:
            usable.cancel()

    async def results(self, messages: Iterable[Saved], at_once: int) -> AsyncIterator[tuple[Saved, Result]]:
        """Yield what would become of each message, in their order; ``at_once`` of them are in work, and in memory."""
        window: deque[tuple[Saved, asyncio.Task[Result]]] = deque()
        try:
            for saved in messages:
                if len(window) >= at_once:
                    first, task = window.popleft()
                    yield first, await task
                window.append((saved, asyncio.ensure_future(self.judge(saved))))
            while window:
                first, task = window.popleft()
                yield first, await task
        finally:
            for _, task in window:
                task.cancel()

    async def judge(self, saved: Saved) -> Result:
        """Let one message take the way of a real one."""
        if saved.fault:
            return Result(saved.name, "unreadable", why=saved.fault)
        # As by BDAT, for a file has no stuffed dots; and as it would go on by DATA.
        message = Message(chunked=True)
        spool = Spool(self._settings.temp_directory, _NAME)
        try:
            for piece in _reading(saved):
                spool.append(message.feed_chunk(piece))
                # Others' verdicts come meanwhile.
                await asyncio.sleep(0)
            if rest := message.finish_chunks():
                spool.append(rest)
            if message.deceptive:
                # This one the daemon refuses before it is scanned.
                return Result(
                    saved.name,
                    "bounce",
                    reply=_text(replies.DECEPTIVE_END),
                    why="a dot stands between odd line ends",
                    size=message.length,
                )
            return await self._inspect(saved.name, message, spool)
        except _UnreadableError as error:
            return Result(saved.name, "unreadable", why=str(error))
        except OSError as error:
            why = f"it cannot be stored in {self._settings.temp_directory}: {error.strerror or error}"
            return Result(saved.name, "unreadable", why=why)
        finally:
            spool.close()

    async def _inspect(self, name: str, message: Message, spool: Spool) -> Result:
        account = Account(Tag(_NAME))
        decision = await self._inspector.inspect(
            spool,
            Envelope(),
            Route(account.tag, "127.0.0.1", "127.0.0.1", "127.0.0.1"),
            stuffed=message.stuffed,
            header=message.header_reach,
            account=account,
        )
        told = account.as_dict()
        setting, why = self._ground(account, decision)
        reply = field = ""
        renamed = 0
        if isinstance(decision, Deliver):
            field, renamed = _text(decision.field), len(decision.insertions)
        else:
            reply = _text(reply_to(decision))
        return Result(
            name,
            type(decision).__name__.lower(),
            str(told["verdict"] or ""),
            str(told["virus"]),
            reply,
            field,
            renamed,
            setting,
            why,
            size=account.size,
            scanner=account.course.scanner,
            seconds=told["scan_seconds"],
        )

    def _ground(self, account: Account, decision: Decision) -> tuple[str, str]:
        """Return the setting by which it was decided, and what else there is to say."""
        settings = self._settings
        if isinstance(decision, Bounce) and decision.ground is Ground.FORGERY:
            return "", f"more than {FORGED_MAX} header fields pretend to be ours"
        match account.verdict:
            case Infected(name):
                rule = self._policy.rule_for(name)
                return (f"ActionFor: {rule}" if rule is not None else f"Action: {settings.action.value}"), ""
            case Oversize(reason):
                return f"Oversize: {settings.oversize.value}", reason
            case Unscanned(reason) if settings.scan_failure is Unjudged.PASS and not isinstance(decision, Deliver):
                # A fault of our own storage, which no setting is about.
                return "", reason
            case Unscanned(reason):
                return f"ScanFailure: {settings.scan_failure.value}", reason
            case Clean() if isinstance(decision, Deliver):
                return "", "it is clean"
            case _:
                return "", "its header section cannot be read again"


class _UnreadableError(Exception):
    """A saved message cannot be read; ``str()`` says why."""


def _reading(saved: Saved) -> Iterator[bytes]:
    """Yield the pieces; errors of theirs are told from those of the spool. Raises _UnreadableError."""
    try:
        yield from pieces(saved)
    except OSError as error:
        raise _UnreadableError(error.strerror or str(error)) from None


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace").strip().replace("\r\n", " ")
