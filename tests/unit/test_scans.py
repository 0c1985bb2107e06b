"""The same octets are scanned once, and the verdict is there for whoever brings them again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from clamsmtpd import scans as module
from clamsmtpd.clamd.course import Course
from clamsmtpd.clamd.early import EarlyScan
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.metrics import SPARED, Metrics
from clamsmtpd.scans import Scans
from clamsmtpd.spool import MEMORY_MAX, Spool
from clamsmtpd.values import Clean, Infected, Unscanned, Verdict
from clamsmtpd.verdicts import LATEST_SIZE, REGION_SIZE, Verdicts

EICAR = Infected("Eicar-Test-Signature")
LARGE = b"x" * 98 + b"\r\n"


class Scanner:
    """A pool that gives its verdicts when it is told to."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.asked = 0
        #: Seconds for which the last message has waited for the scan of another.
        self.waited = 0.0
        self.free = asyncio.Event()
        self.version = "ClamAV 1.4.3/27000"

    async def scan(self, _message: Spool, _early: EarlyScan | None = None, *, since: float, course: Course) -> Verdict:
        self.asked += 1
        self.waited = asyncio.get_running_loop().time() - since
        verdict = self.verdicts.pop(0)
        await self.free.wait()
        return verdict


class Place:
    """A scanner, and so many workers that use it."""

    def __init__(self, folder: Path, *verdicts: Verdict, workers: int = 1) -> None:
        self._folder = str(folder)
        self._spools: list[Spool] = []
        self.scanner = Scanner(*verdicts)
        memory = bytearray(LATEST_SIZE + workers * REGION_SIZE)
        self.metrics = Metrics()
        self.workers = [
            Scans(cast("Pool", self.scanner), Verdicts(memory, 0, workers, number), self.metrics.row(0))
            for number in range(workers)
        ]

    def spool(self, text: bytes, *, stuffed: bool = False) -> Spool:
        spool = Spool(self._folder, "test")
        spool.append(text)
        spool.seal(stuffed=stuffed)
        self._spools.append(spool)
        return spool

    def ask(self, text: bytes, worker: int = 0, *, stuffed: bool = False) -> asyncio.Task[Verdict]:
        return asyncio.ensure_future(self.workers[worker].scan(self.spool(text, stuffed=stuffed)))

    @property
    def spared(self) -> int:
        return self.metrics.total(SPARED)

    def close(self) -> None:
        for spool in self._spools:
            spool.close()


@contextlib.contextmanager
def place(folder: Path, *verdicts: Verdict, workers: int = 1) -> Iterator[Place]:
    here = Place(folder, *verdicts, workers=workers)
    try:
        yield here
    finally:
        here.close()


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.parametrize("text", [b"text\r\n", LARGE * (MEMORY_MAX // 50)], ids=["small", "large"])
def test_the_same_octets_are_scanned_once_at_a_time(tmp_path: Path, text: bytes) -> None:
    async def main() -> None:
        with place(tmp_path, EICAR) as here:
            tasks = [here.ask(text) for _ in range(5)]
            await turns()
            assert here.scanner.asked == 1
            here.scanner.free.set()
            assert await asyncio.gather(*tasks) == [EICAR] * 5
            assert here.spared == 4

    asyncio.run(main())


@pytest.mark.parametrize("other", [b"TEXT\r\n", b"text2\r\n"], ids=["as long", "longer"])
def test_other_octets_are_scanned_beside_them(tmp_path: Path, other: bytes) -> None:
    async def main() -> None:
        with place(tmp_path, EICAR, Clean()) as here:
            tasks = [here.ask(b"text\r\n"), here.ask(other)]
            await turns()
            assert here.scanner.asked == 2
            here.scanner.free.set()
            assert await asyncio.gather(*tasks) == [EICAR, Clean()]
            assert here.spared == 0

    asyncio.run(main())


def test_large_messages_that_differ_in_the_end_are_two(tmp_path: Path) -> None:
    async def main() -> None:
        text = LARGE * 6000
        with place(tmp_path, Clean(), EICAR) as here:
            tasks = [here.ask(text + b"a"), here.ask(text + b"b")]
            await turns()
            here.scanner.free.set()
            assert await asyncio.gather(*tasks) == [Clean(), EICAR]

    asyncio.run(main())


def test_octets_that_stand_for_another_text_are_others(tmp_path: Path) -> None:
    # BDAT brings a line that begins with two dots; in DATA the first of them is stuffed.
    async def main() -> None:
        with place(tmp_path, Clean(), EICAR) as here:
            tasks = [here.ask(b"..\r\n"), here.ask(b"..\r\n", stuffed=True)]
            here.scanner.free.set()
            assert await asyncio.gather(*tasks) == [Clean(), EICAR]

    asyncio.run(main())


def test_when_a_scan_is_given_up_another_takes_its_place(tmp_path: Path) -> None:
    async def main() -> None:
        with place(tmp_path, Unscanned("never said"), EICAR) as here:
            first, second, third = (here.ask(b"text\r\n") for _ in range(3))
            await turns()
            first.cancel()
            await turns()
            assert here.scanner.asked == 2
            here.scanner.free.set()
            assert list(await asyncio.gather(second, third)) == [EICAR, EICAR]

    asyncio.run(main())


def test_one_that_is_no_longer_under_way_is_no_help(tmp_path: Path) -> None:
    async def main() -> None:
        with place(tmp_path, Clean(), EICAR) as here:
            here.scanner.free.set()
            assert await here.ask(b"text\r\n") == Clean()
            assert await here.ask(b"text\r\n") == EICAR

    asyncio.run(main())


async def late(here: Place, text: bytes, *, then: str | None = None, verdict: Verdict = EICAR) -> None:
    """Have a text judged whose client leaves meanwhile; the scanner then has other signatures, if that is said."""
    here.scanner.verdicts.insert(0, verdict)
    asked = here.scanner.asked
    spool = here.spool(text)
    task = asyncio.ensure_future(here.workers[0].scan(spool))
    await turns()
    spool.abandoned = True
    if then is not None:
        here.scanner.version = then
    here.scanner.free.set()
    await task
    here.scanner.asked = asked


def test_a_verdict_that_came_too_late_answers_the_next_try(tmp_path: Path) -> None:
    async def main() -> None:
        with place(tmp_path, workers=2) as here:
            await late(here, b"text\r\n")
            for worker in (0, 1):
                assert await here.ask(b"text\r\n", worker) == EICAR
            assert here.scanner.asked == 0
            assert here.spared == 2

    asyncio.run(main())


def test_whoever_waited_for_the_verdict_of_another_finds_it_too(tmp_path: Path) -> None:
    async def main() -> None:
        with place(tmp_path, EICAR) as here:
            first = here.ask(b"text\r\n")
            await turns()
            spool = here.spool(b"text\r\n")
            second = asyncio.ensure_future(here.workers[0].scan(spool))
            await turns()
            spool.abandoned = True
            here.scanner.free.set()
            assert list(await asyncio.gather(first, second)) == [EICAR, EICAR]
            assert await here.ask(b"text\r\n") == EICAR
            assert here.scanner.asked == 1

    asyncio.run(main())


def test_a_verdict_is_not_kept_when_nobody_knows_what_it_rests_on(tmp_path: Path) -> None:
    async def main() -> None:
        with place(tmp_path, Clean(), Clean(), Clean()) as here:
            # The signatures change in the midst of the scan.
            await late(here, b"text\r\n", then="ClamAV 1.4.3/27001")
            assert await here.ask(b"text\r\n") == Clean()
            # They change later.
            await late(here, b"text\r\n")
            here.scanner.version = "ClamAV 1.4.3/27002"
            assert await here.ask(b"text\r\n") == Clean()
            # The scanners do not say the same.
            here.scanner.version = ""
            await late(here, b"text\r\n")
            assert await here.ask(b"text\r\n") == Clean()

    asyncio.run(main())


def test_whoever_joins_a_scan_rests_on_its_signatures(tmp_path: Path) -> None:
    async def main() -> None:
        with place(tmp_path, Clean(), EICAR) as here:
            first = here.ask(b"text\r\n")
            await turns()
            here.scanner.version = "ClamAV 1.4.3/27001"
            spool = here.spool(b"text\r\n")
            second = asyncio.ensure_future(here.workers[0].scan(spool))
            await turns()
            spool.abandoned = True
            here.scanner.free.set()
            assert list(await asyncio.gather(first, second)) == [Clean(), Clean()]
            assert await here.ask(b"text\r\n") == EICAR

    asyncio.run(main())


def test_other_workers_hear_of_no_scan_whose_signatures_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PUBLIC_AFTER", 0.05)

    async def main() -> None:
        with place(tmp_path, Clean(), EICAR, workers=2) as here:
            first = here.ask(b"text\r\n")
            await turns()
            here.scanner.version = "ClamAV 1.4.3/27001"
            await asyncio.sleep(0.2)
            here.scanner.free.set()
            assert await first == Clean()
            assert await here.ask(b"text\r\n", worker=1) == EICAR

    asyncio.run(main())


def test_what_is_no_verdict_is_not_kept(tmp_path: Path) -> None:
    async def main() -> None:
        with place(tmp_path, Clean()) as here:
            await late(here, b"text\r\n", verdict=Unscanned("no scanner"))
            assert await here.ask(b"text\r\n") == Clean()

    asyncio.run(main())


def test_another_worker_waits_for_a_scan_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUBLIC_AFTER", 0.01)

    async def main() -> None:
        with place(tmp_path, EICAR, workers=2) as here:
            first = here.ask(LARGE * 6000)
            await asyncio.sleep(0.1)
            second = here.ask(LARGE * 6000, worker=1)
            await asyncio.sleep(0.3)
            assert here.scanner.asked == 1
            here.scanner.free.set()
            assert list(await asyncio.gather(first, second)) == [EICAR, EICAR]
            assert here.spared == 1

    asyncio.run(main())


def test_another_worker_goes_on_alone_when_that_scan_comes_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PUBLIC_AFTER", 0.01)

    async def main() -> None:
        with place(tmp_path, Unscanned("no scanner"), EICAR, workers=2) as here:
            first = here.ask(b"text\r\n")
            await asyncio.sleep(0.1)
            second = here.ask(b"text\r\n", worker=1)
            await asyncio.sleep(0.05)
            first.cancel()
            await asyncio.sleep(0.4)
            assert here.scanner.asked == 2
            assert here.scanner.waited > 0.2, "of the time that its client has"
            here.scanner.free.set()
            assert await second == EICAR

    asyncio.run(main())


def test_a_message_that_is_gone_is_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUBLIC_AFTER", 0.0)

    async def main() -> None:
        with place(tmp_path, Clean(), workers=2) as here:
            task = here.ask(LARGE * 60_000)
            # While its digest is taken.
            await asyncio.sleep(0.002)
            here.scanner.free.set()
            assert await task == Clean()
            here.close()
            await asyncio.sleep(0.05)
            assert not here.workers[1]._verdicts.may_know(len(LARGE) * 60_000)

    asyncio.run(main())
