"""The watch over one scanner: whether it lives, whether it sees, and how much it looks at."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable

from clamsmtpd.clamd.allowance import scan_limit, seconds
from clamsmtpd.clamd.canary import CLEAN, EICAR, Sample
from clamsmtpd.clamd.client import Scanner
from clamsmtpd.clamd.connecting import ClamdError
from clamsmtpd.clamd.limit import Limit
from clamsmtpd.clamd.outcome import Failed, Fault, Outcome
from clamsmtpd.clamd.protocol import VERSION, is_unknown_command, quote
from clamsmtpd.clamd.session import IDLE_LIMIT, ClamdSession, Lost
from clamsmtpd.values import Address, Clean, Infected

__all__ = ["Watch"]

_log = logging.getLogger("clamsmtpd")

#: Seconds between two looks, each of which is one command in a connection that stays; it must not become idle.
PULSE_INTERVAL = 0.8 * IDLE_LIMIT

# The least of it, for a clamd that ends connections soon (ReadTimeout in clamd.conf).
_PULSE_INTERVAL_MIN = 0.25

#: Seconds for the answer, which clamd gives from the thread that reads commands: it need not wait for a scan to end.
SILENCE = 5.0

# Seconds for which the canary alone is waited for.
_PATIENCE = 2.0

#: Seconds between two rounds of the canary, where nothing has happened. clamd's log, and its VirusEvent
#: (clamd.conf(5)), which may well be a mail to somebody, tell of each: it must not be often. Whatever makes a clamd
#: blind nearly always ends it or changes its version, and is looked at then.
CANARY_INTERVAL = 600.0

#: Seconds after which a limit is learnt again, by descriptor or path, and where every octet goes over a network.
LEARN_INTERVAL, LEARN_INTERVAL_STREAM = 600.0, 3600.0

#: Seconds from one look to the next at a scanner that is set aside, at first and in the end.
RETRY_FIRST, RETRY_LAST = 0.25, 10.0

#: Octets up to which the limit is learnt when nobody has said how large messages can be. A probe that is seen costs
#: clamd 2 ms of a processor for each MiB, by descriptor, and 5 ms by stream, whatever its signatures (measured with
#: version 1.4); one that is not seen costs nothing. So each process that watches costs it 0.2 s every ten minutes, and
#: the canary half a millisecond.
LEARN_MAX = 100 * 1024 * 1024

# Octets above which no limit is looked for, whatever a next hop says: that is one more than clamd ever looks at.
_LEARN_LAST = 2 * 1024 * 1024 * 1024


class _FaultError(Exception):
    """The scanner cannot be used; ``str()`` says why."""


class Watch:
    """Looks after the scanner at ``address`` from :meth:`start` on, in connections of its own.

    One of them is held: when clamd ends, that ends too, and nothing that was known is believed any more until clamd
    has been looked at again. ``changed`` is called when any of the public attributes has changed. ``directory``
    is for files that clamd opens itself.
    """

    def __init__(
        self, address: Address, *, time_out: float, directory: str | None, changed: Callable[[], None]
    ) -> None:
        #: What gives it messages.
        self.scanner = Scanner(address, time_out=time_out, slow=self.hurry)
        #: Whether messages may be given to it.
        self.usable = False
        #: Whether it has not said anything when it was to.
        self.silent = False
        #: Why it cannot be used; empty if it has not been tried.
        self.fault = ""
        #: What it says of itself, and of its signatures and their date.
        self.version = ""
        #: The sizes that it looks at.
        self.limit = Limit()
        #: Why the last probe of that has told nothing; empty if it has.
        self.probe_fault = ""
        #: Scans of messages that it has answered; whoever gives it messages counts them.
        self.ended = 0
        self._time_out = time_out
        # A clamd that has not answered for that long is of no use to messages either.
        self._silence = min(SILENCE, time_out / 2)
        self._directory = directory
        self._changed = changed
        self._top = LEARN_MAX
        # What the log says of it.
        self._aside = False
        self._told = ""
        self._due = asyncio.Event()
        self._has_sessions = True
        self._pulse: ClamdSession | None = None
        self._pulse_interval = PULSE_INTERVAL
        self._pulse_began = -math.inf
        self._canary_at = -math.inf
        self._learn_at = -math.inf
        self._task: asyncio.Task[None] | None = None
        # The number of scans that had ended when one was last seen to have, and when that was.
        self._progress = (0, 0.0)
        self._examination: asyncio.Task[str | None] | None = None
        self._learning: asyncio.Task[None] | None = None
        self._probes: dict[int, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin to watch, if that has not begun."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Watch no longer."""
        for task in (self._task, self._examination, self._learning, *self._probes.values()):
            if task is not None:
                task.cancel()
        if self._pulse is not None:
            pulse, self._pulse = self._pulse, None
            pulse.close()

    def hurry(self) -> None:
        """Look now whether it lives."""
        self._due.set()

    def suspect(self, *, doubt: bool) -> None:
        """Look now whether it lives and sees; nothing is given to it before, if there is much ``doubt``."""
        self._canary_at = -math.inf
        self._due.set()
        if doubt and self.usable:
            self.usable = False
            self._changed()

    def expect(self, octets: int) -> None:
        """Learn the limit up to so much."""
        self._top = min(octets, _LEARN_LAST)
        if self.limit.next_probe(self._top) is not None:
            self._learn_at = -math.inf
            self._due.set()

    async def see(self, size: int) -> None:
        """Have :attr:`limit` tell how it is with a message of ``size`` octets; it does not where that failed."""
        while self.usable and (probe := self.limit.probe_for(size)) is not None:
            epoch = self.limit.epoch
            await self._probe(probe)
            if epoch == self.limit.epoch and self.limit.probe_for(size) == probe:
                return

    # ---- looks --------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = RETRY_FIRST
        while True:
            self._due.clear()
            try:
                await self._look()
            except _FaultError as error:
                self._set_aside(str(error))
                # Whatever it was that has ended by that, it is looked at again soon enough.
                self._due.clear()
                wait, pause = pause, min(2 * pause, RETRY_LAST)
            except Exception as error:  # noqa: BLE001 - see below
                # A fault of ours. Whoever does not watch must not leave it as it was, nor stop watching.
                where = f"watching clamd at {self.scanner.address}"
                _log.error("internal error: %s: %s: %s", where, type(error).__name__, error)
                _log.debug("traceback", exc_info=error)
                self._set_aside(f"it could not be looked at: {error!r}")
                wait = RETRY_LAST
            else:
                wait, pause = self._pulse_interval, RETRY_FIRST
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._due.wait()

    async def _look(self) -> None:
        """See whether it lives, and, when that is due, whether it sees. Raises _FaultError."""
        version = await self._ask_version()
        now = asyncio.get_running_loop().time()
        if version != self.version:
            self.version = version
            # Other signatures, and perhaps another program.
            self.limit.forget()
            self._canary_at = self._learn_at = -math.inf
            self._changed()
        if not self.usable or now >= self._canary_at:
            if self._examination is None:
                self._progress = (self.ended, now)
                self._examination = asyncio.get_running_loop().create_task(self._examine())
            # Scans wait for each other, and the canary with them. Meanwhile it is enough that it lives.
            await asyncio.wait((self._examination,), timeout=min(self._pulse_interval, _PATIENCE))
            if not self._examination.done():
                self._due.set()
                self._check_progress()
                return
            examination, self._examination = self._examination, None
            if fault := examination.result():
                raise _FaultError(fault)
            if fault is None:
                return
            if self._has_sessions and self._pulse is None:
                # It has ended since, so that this was said of another.
                self._due.set()
                return
            self._canary_at = asyncio.get_running_loop().time() + CANARY_INTERVAL
            self._take_back()
        if now >= self._learn_at and self._learning is None:
            self._learn_at = now + (LEARN_INTERVAL_STREAM if self.scanner.streams else LEARN_INTERVAL)
            self._learning = asyncio.get_running_loop().create_task(self._learn())

    def _check_progress(self) -> None:
        """Raise _FaultError if it answers commands, but does nothing else."""
        now = asyncio.get_running_loop().time()
        if self.ended != self._progress[0]:
            self._progress = (self.ended, now)
        elif now - self._progress[1] > self._time_out / 2:
            self.silent = True
            raise _FaultError(f"no scan has ended for {seconds(self._time_out / 2)}")

    async def _ask_version(self) -> str:
        """Return what it says of itself; empty if it has no sessions to ask that in. Raises _FaultError."""
        if not self._has_sessions:
            return ""
        pulse = self._pulse
        if pulse is None:
            since = asyncio.get_running_loop().time() - self._pulse_began
            try:
                pulse = self._pulse = await self.scanner.open(self._silence, self._on_pulse_ended)
            except ClamdError as error:
                self.silent = error.timed_out
                raise _FaultError(str(error)) from None
            self._pulse_began = asyncio.get_running_loop().time()
            # One that ends each as soon as it has answered would be looked at without a pause.
            await asyncio.sleep(max(_PULSE_INTERVAL_MIN - since, 0.0))
        answer = await pulse.ask(VERSION, limit=self._silence)
        self.silent = isinstance(answer, Lost) and answer.timed_out
        if isinstance(answer, bytes):
            return quote(answer)[1:-1]
        if is_unknown_command(answer.strange):
            self._has_sessions = False
            return ""
        self._pulse = None
        pulse.close()
        raise _FaultError(f"it is silent: {answer.reason}" if answer.timed_out else answer.reason)

    def _on_pulse_ended(self, session: ClamdSession) -> None:
        if session is not self._pulse:
            return
        self._pulse = None
        lasted = asyncio.get_running_loop().time() - self._pulse_began
        self._pulse_interval = max(min(PULSE_INTERVAL, lasted / 2), _PULSE_INTERVAL_MIN)
        # Whoever listens there now may be another process.
        self.limit.forget()
        self._learn_at = -math.inf
        self.suspect(doubt=True)

    def _set_aside(self, fault: str) -> None:
        if self._examination is not None:
            self._examination.cancel()
            self._examination = None
        self.usable = False
        self.limit.forget()
        self._canary_at = self._learn_at = -math.inf
        self._pulse_interval = PULSE_INTERVAL
        if not self._aside or fault != self.fault:
            _log.warning("clamd at %s is set aside: %s", self.scanner.address, fault)
        self._aside = True
        self.fault = fault
        self._changed()

    def _take_back(self) -> None:
        if self._aside:
            _log.warning("clamd at %s is back: %s", self.scanner.address, self.version or "it has no version")
        elif self.version != self._told:
            _log.info("clamd at %s: %s", self.scanner.address, self.version)
        self._told = self.version
        self._aside = False
        self.fault = ""
        if not self.usable:
            self.usable = True
            self._changed()

    # ---- samples ------------------------------------------------------------------------------

    async def examine(self) -> str:
        """Look at the scanner now, by a clean and an infected sample; return what is wrong, nothing if it is well."""
        try:
            async with asyncio.timeout(self._silence):
                found = await self._examine()
        except TimeoutError:
            found = None
        return "it did not answer in time" if found is None else found

    async def _examine(self) -> str | None:
        """Return why the scanner cannot be relied on; empty if it can, None if that cannot be told."""
        for text in (CLEAN, EICAR):
            outcome = await self._scan(Sample(text, directory=self._directory))
            match outcome:
                case Failed(_, Fault.SILENT | Fault.OURS):
                    # It lives, or this would have been cancelled.
                    return None
                case Failed():
                    return outcome.reason
                case Infected() if text is CLEAN:
                    return f"it finds {outcome.name} in a message that is clean"
                case Clean() if text is EICAR:
                    return "it is blind: it calls the EICAR test file clean"
        return ""

    async def _learn(self) -> None:
        """Find out up to which size it sees."""
        limit, could = self.limit, self.limit.learnable
        try:
            # Not more than there are sizes between nothing and all, were each answer to contradict the one before.
            for _ in range(40):
                if (size := limit.next_probe(self._top)) is None:
                    break
                await self._probe(size)
                if limit.next_probe(self._top) == size:
                    # It did not say; another time.
                    break
        finally:
            self._learning = None
        if could and not limit.learnable:
            _log.warning(
                "clamd at %s does not find the EICAR test file with padding behind it, so that nobody knows how "
                "large a message it looks at; keep MaxFileSize and MaxScanSize in clamd.conf above the next hop's SIZE",
                self.scanner.address,
            )
        self._changed()

    async def _probe(self, size: int) -> None:
        """Learn whether it sees a virus in so many octets; the same probe serves all who wait for it."""
        if (task := self._probes.get(size)) is None:
            task = self._probes[size] = asyncio.get_running_loop().create_task(self._probe_once(size))
            task.add_done_callback(lambda _: self._probes.pop(size, None))
        await asyncio.shield(task)

    async def _probe_once(self, size: int) -> None:
        epoch = self.limit.epoch
        outcome = await self._scan(Sample(EICAR, size, directory=self._directory))
        self.probe_fault = outcome.reason if isinstance(outcome, Failed) else ""
        if epoch == self.limit.epoch and not isinstance(outcome, Failed):
            self.limit.note(size, seen=isinstance(outcome, Infected))
            self._changed()

    async def _scan(self, sample: Sample) -> Outcome:
        with contextlib.closing(sample):
            deadline = asyncio.get_running_loop().time() + scan_limit(sample.size, self._time_out)
            try:
                return await self.scanner.probe(sample, deadline=deadline)
            except OSError as error:
                return Failed(f"a sample could not be made: {error}", Fault.OURS)
