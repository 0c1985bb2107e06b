"""The scanners together: each message goes to one that can take it, and to another if that fails."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any

from clamsmtpd.clamd.allowance import scan_limit
from clamsmtpd.clamd.client import EarlyScan, Scannable, Scanner
from clamsmtpd.clamd.course import Course
from clamsmtpd.clamd.limit import SMALL, Limit
from clamsmtpd.clamd.load import Load
from clamsmtpd.clamd.outcome import Failed, Fault
from clamsmtpd.clamd.watch import Watch
from clamsmtpd.metrics import SCANNER_FAULTS, SCANNERS
from clamsmtpd.values import Address, Infected, Oversize, Unscanned, Verdict

__all__ = ["Pool", "scan_limit"]

_log = logging.getLogger("clamsmtpd")

#: How many times one scanner gets the same message.
TRIES = 2

#: Connections that break while clamd has the message, and answers that are no verdict, after which the message is
#: taken for what causes them. It must not take one scanner down after the other, again and again.
LOSSES = STRANGE_ANSWERS = 2

#: Seconds before a scanner that gave no verdict gets the same message again, if there is no other.
PAUSE = 1.0

#: Seconds before a scanner that could not be reached is tried again, doubled each time. Its watch was there before.
PAUSE_FIRST = 0.01

#: Seconds without a scanner after which messages that begin are turned away: such a pause is no restart any more.
PATIENCE = 30.0

# Numbers that a next hop has said, for each of which a warning was given or was not needed.
_EXPECTED_MAX = 64


class _Member:
    """One scanner, with what is known of it."""

    __slots__ = ("limit", "outstanding", "scanner", "scans", "seconds", "watch")

    def __init__(self, scanner: Scanner, watch: Watch | None = None) -> None:
        self.scanner = scanner
        self.watch = watch
        if watch is not None:
            self.limit = watch.limit
        else:
            self.limit = Limit()
            self.limit.assume_none()
        self.outstanding = 0
        #: Verdicts that it has given, and the seconds that they took together.
        self.scans = 0
        self.seconds = 0.0

    @property
    def usable(self) -> bool:
        return self.watch is None or self.watch.usable

    @property
    def name(self) -> str:
        return f"clamd at {self.scanner.address}"

    def describe(self) -> dict[str, Any]:
        watch = self.watch
        blind = self.limit.blind
        return {
            "address": str(self.scanner.address),
            "usable": self.usable,
            "fault": watch.fault if watch is not None and not self.usable else "",
            "version": watch.version if watch is not None else "",
            "outstanding": self.outstanding,
            "scans": self.scans,
            "seconds": round(self.seconds, 6),
            "limit": int(blind) if blind != math.inf else None,
        }


class _Case:
    """One message, and what came of giving it to scanners."""

    __slots__ = ("course", "deadline", "faults", "losses", "pauses", "size", "strange", "tries")

    def __init__(self, size: int, deadline: float, course: Course) -> None:
        self.size = size
        self.course = course
        self.deadline = deadline
        self.tries: dict[_Member, int] = {}
        # The last one of each scanner.
        self.faults: dict[_Member, str] = {}
        self.losses = 0
        self.strange = 0
        self.pauses = 0

    def note(self, member: _Member, failed: Failed) -> None:
        self.faults[member] = failed.reason
        if failed.fault not in (Fault.UNREACHABLE, Fault.OURS):
            self.tries[member] = self.tries.get(member, 0) + 1
        self.losses += failed.lost
        self.strange += failed.fault is Fault.STRANGE

    @property
    def hopeless(self) -> bool:
        """Whether it is the message that makes scanners fail, as far as can be told."""
        return self.losses >= LOSSES or self.strange >= STRANGE_ANSWERS


class Pool:
    """Has messages scanned by the clamds at ``addresses``, of which there is at least one.

    ``time_out``: seconds that a scan may take, beside what its size adds (:func:`scan_limit`). How many scanners are
    usable stands in ``row``, one of :class:`~clamsmtpd.metrics.Metrics`. ``temp_directory`` is for samples, where clamd
    opens files itself; without, it is the system's own. If they are not ``watched``, all scanners are taken for usable,
    and their verdicts are believed.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        time_out: float,
        row: memoryview | None = None,
        watched: bool = True,
        temp_directory: str | None = None,
    ) -> None:
        self._time_out = time_out
        self._row = row
        self._load = Load()
        self._members: list[_Member] = []
        self._watched = watched
        for address in addresses:
            if watched:
                watch = Watch(address, time_out=time_out, directory=temp_directory, changed=self._on_changed)
                self._members.append(_Member(watch.scanner, watch))
            else:
                self._members.append(_Member(Scanner(address, time_out=time_out)))
        self._some_usable = not watched
        # Whether a message waits when no scanner is usable.
        self._waits = True
        # Since when none is.
        self._none_since = math.inf
        self._version = ""
        # Set and forgotten whenever anything about a scanner has changed.
        self._change: asyncio.Future[None] | None = None
        self._expected: set[int] = set()
        self._largest = 0
        self._warned: set[tuple[_Member, int, float]] = set()

    def start(self) -> None:
        """Begin to watch the scanners; needs a running loop."""
        self._none_since = asyncio.get_running_loop().time()
        self._on_changed()
        for member in self._members:
            if member.watch is not None:
                member.watch.start()

    def count_no_more(self) -> None:
        """Leave ``row`` to others: these scanners serve only those who have them already."""
        self._row = None

    def stop_waiting(self) -> None:
        """Wait for no scanner any more: what none can take now has no verdict. Scans that are under way go on."""
        self._waits = False
        self._tell()

    def close(self) -> None:
        """Close the connections that are kept between scans; none may be under way any more."""
        for member in self._members:
            if member.watch is not None:
                member.watch.close()
            member.scanner.close()

    # ---- what is known ------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """What all usable scanners say of their signatures and their date; empty if unknown, or not the same."""
        return self._version

    def admits(self) -> bool:
        """Tell whether a message that begins now can be judged in time, as far as that can be told."""
        if not self._some_usable and asyncio.get_running_loop().time() - self._none_since > PATIENCE:
            return False
        return self._load.wait <= scan_limit(0, self._time_out)

    @property
    def wait(self) -> float:
        """Seconds until all that is being scanned now has been, as far as that can be told."""
        return self._load.wait

    async def usable(self) -> None:
        """Wait until there is a scanner that lives and sees."""
        while not self._some_usable:
            await self._changed()

    def expect(self, octets: int | None) -> None:
        """Learn how large a message the next hop takes (RFC 1870); it is warned of when scanners look at less."""
        if not octets or octets in self._expected:
            return
        if len(self._expected) >= _EXPECTED_MAX:
            self._expected.clear()
            self._warned.clear()
        self._expected.add(octets)
        if octets > self._largest:
            self._largest = octets
            for member in self._members:
                if member.watch is not None:
                    member.watch.expect(octets)
        self._warn_of_limits()

    def _warn_of_limits(self) -> None:
        for member in self._members:
            blind = member.limit.blind
            # Until that is all that is known, the border may be elsewhere.
            if blind == math.inf or member.limit.next_probe(int(blind)) is not None:
                continue
            for octets in sorted(self._expected):
                if octets < blind or (member, octets, blind) in self._warned:
                    continue
                self._warned.add((member, octets, blind))
                _log.warning(
                    "%s looks at nothing of %d octets and more, but the next hop takes messages of %d: raise %s "
                    "in clamd.conf",
                    member.name,
                    blind,
                    octets,
                    _settings(member),
                )

    def _on_changed(self) -> None:
        """Take up what a watch has found."""
        usable = [member for member in self._members if member.usable]
        if self._row is not None:
            self._row[SCANNERS] = len(usable)
        if self._some_usable and not usable:
            self._none_since = asyncio.get_running_loop().time()
        self._some_usable = bool(usable)
        versions = {member.watch.version for member in usable if member.watch is not None}
        version = versions.pop() if len(versions) == 1 else ""
        # With signatures of its owner's own alone, clamd names none, and the same answer may mean others.
        self._version = version if "/" in version else ""
        if usable:
            for member in self._members:
                if member.watch is not None and member.watch.silent and not member.usable:
                    # Those that wait there have somewhere to go.
                    member.scanner.give_up(member.watch.fault)
        self._warn_of_limits()
        self._tell()

    def _tell(self) -> None:
        if self._change is not None:
            if not self._change.done():
                self._change.set_result(None)
            self._change = None

    async def _changed(self) -> None:
        if self._change is None:
            self._change = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._change)

    def describe(self) -> list[dict[str, Any]]:
        """Tell of each scanner what is known of it, for JSON: seconds and octets are numbers."""
        return [member.describe() for member in self._members]

    async def examine(self) -> list[tuple[str, str]]:
        """Look at each scanner now, by samples; return its address and what is wrong, nothing if it is well."""
        watches = [member.watch for member in self._members if member.watch is not None]
        found = await asyncio.gather(*(watch.examine() for watch in watches))
        return [(str(watch.scanner.address), trouble) for watch, trouble in zip(watches, found, strict=True)]

    # ---- scans --------------------------------------------------------------------------------

    def begin(self, message: Scannable) -> EarlyScan | None:
        """Have a message scanned that still comes in, if it becomes large, and if that saves time in the end."""
        member = self._choose(0, {})
        return member.scanner.begin(message) if member is not None else None

    async def scan(
        self,
        message: Scannable,
        early: EarlyScan | None = None,
        *,
        since: float | None = None,
        course: Course | None = None,
    ) -> Verdict:
        """Return the verdict on a whole message; what its way was like goes into ``course``.

        ``early`` is what :meth:`begin` has returned for it. Its time counts from ``since``, by the clock of the loop,
        or else from now. Raises OSError only for a fault of the message's own storage.
        """
        now = asyncio.get_running_loop().time
        began = now()
        size = message.size
        deadline = (began if since is None else since) + scan_limit(size, self._time_out)
        case = _Case(size, deadline, Course() if course is None else course)
        load = self._load
        load.begin(began)
        try:
            while now() < case.deadline:
                if (verdict := await self._try(case, message, early)) is not None:
                    return verdict
                early = None
            return self._unscanned(case)
        finally:
            load.end(now())

    async def _try(self, case: _Case, message: Scannable, early: EarlyScan | None) -> Verdict | None:
        """Give the message to one scanner, or wait for one; return None when that was for nothing."""
        if early is not None:
            member = self._whose(early) if early.begun else None
            if member is None:
                early.cancel()
                return None
        else:
            member = self._choose(case.size, case.tries)
        if member is None:
            return await self._wait(case)
        size, limit = case.size, member.limit
        if size > limit.seen and early is None:
            # That takes its time, after which another may have less to do.
            await self._sees(member, case)
            return None
        now = asyncio.get_running_loop().time
        began = now()
        course = case.course
        course.scanner = str(member.scanner.address)
        course.given = began
        course.early = early is not None
        course.tries += 1
        member.outstanding += 1
        epoch = limit.epoch
        try:
            outcome = await member.scanner.scan(message, early, deadline=self._share(case), again=not case.losses)
        finally:
            member.outstanding -= 1
        if isinstance(outcome, Oversize) and size <= SMALL:
            # That is nothing to be learnt from, and it would be asked again and again.
            outcome = Failed(outcome.reason, Fault.STRANGE)
        if isinstance(outcome, Failed):
            return await self._fail(case, member, outcome)
        member.scans += 1
        member.seconds += now() - began
        if member.watch is None:
            return Oversize(f"{member.name}: {outcome.reason}") if isinstance(outcome, Oversize) else outcome
        member.watch.ended += 1
        if isinstance(outcome, Infected):
            return outcome
        if isinstance(outcome, Oversize):
            limit.note(size, seen=False)
            return None
        # If clamd has been started anew meanwhile, with other settings, this may have come from either, and what the
        # one that is there now looks at says nothing of the other.
        known = size <= limit.seen or (await self._sees(member, case) and epoch == limit.epoch)
        return outcome if known else None

    def _whose(self, early: EarlyScan) -> _Member | None:
        for member in self._members:
            if member.scanner is early.scanner and member.usable:
                return member
        return None

    def _choose(self, case_size: int, tries: dict[_Member, int]) -> _Member | None:
        """Return the scanner that has the least to do, first of those that have not had the message yet."""
        chosen: _Member | None = None
        for member in self._members:
            if not member.usable or case_size >= member.limit.blind or tries.get(member, 0) >= TRIES:
                continue
            if chosen is None or (
                (tries.get(member, 0), member.outstanding) < (tries.get(chosen, 0), chosen.outstanding)
            ):
                chosen = member
        return chosen

    def _share(self, case: _Case) -> float:
        """Return the time by which one scanner must have answered.

        A watch tells busy from silent, and moves what waits. Without one, half of what is left remains for others.
        """
        if self._watched or len(case.faults) + 1 >= len(self._members):
            return case.deadline
        now = asyncio.get_running_loop().time()
        return now + (case.deadline - now) / 2

    async def _sees(self, member: _Member, case: _Case) -> bool:
        """Tell whether the scanner looks at a message of this size, by a probe if need be."""
        watch = member.watch
        if watch is None:
            return True
        try:
            async with asyncio.timeout_at(case.deadline):
                await watch.see(case.size)
        except TimeoutError:
            case.note(member, _unknown_limit(watch))
            return False
        if case.size <= member.limit.seen:
            return True
        if watch.usable and case.size < member.limit.blind:
            await self._fail(case, member, _unknown_limit(watch))
        return False

    async def _wait(self, case: _Case) -> Verdict | None:
        """Wait until a scanner may take the message; return what is to be said if none ever will."""
        if all(case.size >= member.limit.blind for member in self._members):
            return self._oversize(case)
        if all(case.tries.get(member, 0) >= TRIES or case.size >= member.limit.blind for member in self._members):
            return self._unscanned(case)
        if not self._waits:
            return self._unscanned(case)
        try:
            async with asyncio.timeout_at(case.deadline):
                await self._changed()
        except TimeoutError:
            return self._unscanned(case)
        return None

    async def _fail(self, case: _Case, member: _Member, failed: Failed) -> Verdict | None:
        """Take up that a scanner gave no verdict; return what is to be said if no other is tried."""
        case.note(member, failed)
        if self._row is not None:
            self._row[SCANNER_FAULTS[failed.fault.value]] += 1
        now = asyncio.get_running_loop().time()
        if member.watch is None:
            case.tries[member] = TRIES
        elif failed.fault is not Fault.OURS:
            member.watch.suspect(doubt=failed.fault in (Fault.UNREACHABLE, Fault.LOST))
        if case.hopeless or now >= case.deadline:
            return self._unscanned(case)
        other = self._choose(case.size, case.tries)
        if other is None and member.watch is None:
            return self._unscanned(case)
        if other is None or other in case.faults:
            # It would be as before.
            case.pauses += 1
            pause = PAUSE if failed.fault is Fault.STRANGE else min(PAUSE, PAUSE_FIRST * 2**case.pauses)
            await asyncio.sleep(min(pause, case.deadline - now))
        return None

    def _unscanned(self, case: _Case) -> Unscanned:
        reasons = []
        for member in self._members:
            reason = case.faults.get(member, "")
            if not reason and member.watch is not None and not member.usable:
                reason = member.watch.fault
            if not reason and case.size >= member.limit.blind:
                reason = _not_so_much(member)
            if reason:
                reasons.append(f"{member.name}: {reason}")
        return Unscanned("; ".join(reasons) or "no scanner could be used in time")

    def _oversize(self, case: _Case) -> Oversize:
        return Oversize(
            f"the message has {case.size} octets; "
            + "; ".join(
                f"{member.name} {_not_so_much(member)}: raise {_settings(member)} in clamd.conf"
                for member in self._members
            )
        )


def _unknown_limit(watch: Watch) -> Failed:
    reason = "whether it looks at so much could not be found out"
    return Failed(f"{reason}: {watch.probe_fault}" if watch.probe_fault else reason, Fault.SILENT)


def _not_so_much(member: _Member) -> str:
    return f"looks at nothing of {int(member.limit.blind)} octets and more"


def _settings(member: _Member) -> str:
    """Return the settings of clamd.conf(5) that limit it."""
    return "StreamMaxLength, MaxFileSize and MaxScanSize" if member.scanner.streams else "MaxFileSize and MaxScanSize"
