"""The search for the part that has the virus, with a scanner that says what it is told."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import uvloop

from clamsmtpd import culprit
from clamsmtpd.account import Tag
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.culprit import Culprit, Culprits, Room
from clamsmtpd.spool import MEMORY_MAX, Spool
from clamsmtpd.values import Clean, Infected, Oversize, Unscanned, Verdict
from tests.support.loops import until

TAG = Tag("10002A", "10002A-1")


class Oracle:
    """A pool that finds what it is told to find in a text; ``answers`` holds its answers back."""

    def __init__(self, **viruses: Verdict | Exception) -> None:
        self.viruses = {text.encode(): verdict for text, verdict in viruses.items()}
        self.seen: list[bytes] = []
        self.wait = 0.0
        self.at_once = self.most = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def scan(self, message: Spool) -> Verdict:
        text = b"".join(message.pieces())
        self.seen.append(text)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.answers.wait()
        finally:
            self.at_once -= 1
        found = next((verdict for word, verdict in self.viruses.items() if word in text), Clean())
        if isinstance(found, Exception):
            raise found
        return found


class Searches:
    """Culprits with an oracle, and what they have told."""

    def __init__(self, folder: Path, oracle: Oracle) -> None:
        self.folder = str(folder)
        self.culprits = Culprits(cast("Pool", oracle), self.folder, Room())
        self.told: list[Culprit | None] = []

    def begin(self, text: bytes, virus: str = "Worm", *, stuffed: bool = False) -> None:
        """Begin a search as inspection does: the message is gone before it has moved."""
        spool = Spool(self.folder, "test")
        spool.append(text)
        spool.seal(stuffed=stuffed)
        self.culprits.search(spool, virus, TAG, self.told.append)
        spool.close()

    async def all(self, count: int = 1) -> list[Culprit | None]:
        await until(lambda: len(self.told) == count)
        return self.told


Story = Callable[[Searches, Oracle], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., None]]:
    """Run a story. No search leaves a descriptor, a file or memory behind."""
    caplog.set_level(logging.INFO, "clamsmtpd")
    logger = logging.getLogger("clamsmtpd")
    propagate, logger.propagate = logger.propagate, True

    def play(story: Story, **viruses: Verdict | Exception) -> None:
        async def main() -> None:
            oracle = Oracle(**viruses)
            searches = Searches(tmp_path, oracle)
            before, memory = len(os.listdir("/proc/self/fd")), Spool.in_memory
            await story(searches, oracle)
            await searches.culprits.end(0)
            # What tests before this one have left may be collected meanwhile.
            assert len(os.listdir("/proc/self/fd")) <= before
            assert Spool.in_memory == memory
            assert os.listdir(tmp_path) == []

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(main(), 30))

    yield play
    logger.propagate = propagate


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def message(*parts: bytes, fields: bytes = b"") -> bytes:
    text = b"".join(b"--b\r\n" + fields + b"\r\n" + part + b"\r\n" for part in parts)
    return b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + text + b"--b--\r\n"


def test_the_first_part_with_the_virus_is_named(play: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        searches.begin(message(b"clean", b"", b"a worm", b"a worm too"))
        (found,) = await searches.all()
        assert found is not None
        assert (found.part.label, found.virus, found.size) == ("part 3 (text/plain)", "Worm", 6)
        assert found.sha256 == hashlib.sha256(b"a worm").hexdigest()
        # Nobody is asked about what is empty, nor about what comes behind it.
        assert oracle.seen == [b"clean", b"a worm"]

    play(story, worm=Infected("Worm"))
    digest = hashlib.sha256(b"a worm").hexdigest()
    assert lines(caplog) == [f"10002A: virus Worm is in part 3 (text/plain, 6 octets, SHA-256 {digest})"]


def test_a_file_name_is_shown_as_it_can_be(play: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        disposition = b'Content-Disposition: attachment; filename="a\\" (\xe2\x82\xac\r.zip"\r\n'
        searches.begin(message(b"a worm", fields=disposition))
        (found,) = await searches.all()
        assert found is not None
        assert found.part.name == 'a" (€?.zip'

    play(story, worm=Infected("Worm"))
    (line,) = lines(caplog)
    assert line.startswith('10002A: virus Worm is in attachment "a\\x22 (\\xE2\\x82\\xAC?.zip" (text/plain, 6 octets, ')


def test_the_virus_of_the_message_goes_before_another(play: Callable[..., None]) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        searches.begin(message(b"a joke", b"a worm"))
        searches.begin(message(b"a joke", b"another joke", b"x"))
        found = await searches.all(2)
        assert sorted((of.part.number, of.virus) for of in found if of is not None) == [(1, "Joke"), (2, "Worm")]

    play(story, worm=Infected("Worm"), joke=Infected("Joke"))


def test_a_virus_that_is_in_no_part_is_the_message_s(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        searches.begin(message(b"clean", b"large"))
        assert await searches.all() == [None]

    play(story, large=Oversize("too large"))
    assert lines(caplog) == ["10002A: virus Worm is in no part by itself, but in the message as a whole"]


@pytest.mark.parametrize("size", [10, MEMORY_MAX + 10])
def test_dots_that_smtp_has_stuffed_are_no_part_of_it(play: Callable[..., None], size: int) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        searches.begin(b"\r\n" + b"x" * size + b"\r\n..worm\r\n", stuffed=True)
        await searches.all()
        assert oracle.seen == [b"x" * size + b"\r\n.worm\r\n"]

    play(story)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(Unscanned("clamd is\r\naway"), "clamd is\\x0D\\x0Aaway"), (OSError(28, "No space left"), "No space left")],
)
def test_without_an_answer_nothing_is_claimed(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture, verdict: Verdict | Exception, reason: str
) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        searches.begin(message(b"worm"))
        assert await searches.all() == [None]

    play(story, worm=verdict)
    assert lines(caplog) == [f"10002A: where virus Worm is was not found out: {reason}"]


def test_a_fault_of_ours_does_not_cost_the_hook(play: Callable[..., None]) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        seen: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context["exception"]))
        searches.begin(message(b"worm"))
        assert await searches.all() == [None]
        assert isinstance(seen[0], ZeroDivisionError)

    play(story, worm=ZeroDivisionError())


def test_a_search_has_an_end(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(culprit, "LIMIT", 0.05)

    async def story(searches: Searches, oracle: Oracle) -> None:
        oracle.answers.clear()
        searches.begin(message(b"worm"))
        assert await searches.all() == [None]

    play(story)
    assert lines(caplog) == ["10002A: where virus Worm is was not found out: it took more than 0.05 s"]


def test_mail_goes_first(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "_LOOK", 0.01)

    async def story(searches: Searches, oracle: Oracle) -> None:
        oracle.wait = 1.5
        searches.begin(message(b"worm"))
        await asyncio.sleep(0.05)
        assert oracle.seen == []
        oracle.wait = 0.5
        await searches.all()
        assert oracle.seen == [b"worm"]

    play(story)


def test_what_is_too_much_or_too_hard_is_given_up(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        searches.begin(message(*[b"x"] * 1200))
        await searches.all()
        monkeypatch.setattr(culprit, "WORK_MAX", 0.0)
        searches.begin(message(b"x"))
        assert await searches.all(2) == [None, None]

    play(story)
    assert [line.rpartition(": ")[2] for line in lines(caplog)] == [
        "the message is too large, or has too many parts",
        "the message is made to be hard to take apart",
    ]


def test_a_flood_holds_no_more_than_there_is_room_for(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        oracle.answers.clear()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(500):
            searches.begin(b"\r\n" + b"x" * MEMORY_MAX)
        # Those for which there is no room have their hooks at once.
        assert searches.told == [None] * (500 - culprit.HELD_MAX)
        await until(lambda: len(oracle.seen) == culprit.AT_ONCE)
        assert len(os.listdir("/proc/self/fd")) <= before + culprit.HELD_MAX + culprit.AT_ONCE * 2
        oracle.answers.set()
        await searches.all(500)
        assert oracle.most == culprit.AT_ONCE
        # And then there is room again.
        searches.begin(message(b"worm"))
        assert (await searches.all(501))[-1] is not None

    play(story, worm=Infected("Worm"))
    assert lines(caplog)[0] == "10002A: where virus Worm is was not found out: too many messages wait for that"


def test_the_octets_held_are_bounded_too(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "HELD_OCTETS_MAX", 100)

    async def story(searches: Searches, oracle: Oracle) -> None:
        searches.begin(b"\r\n" + b"x" * 60)
        searches.begin(b"\r\n" + b"x" * 60)
        assert searches.told == [None]
        await searches.all(2)
        assert len(oracle.seen) == 1

    play(story)


def test_without_a_descriptor_there_is_no_search_and_the_room_is_free(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(self: Spool) -> None:
        raise OSError(24, "Too many open files")

    async def story(searches: Searches, oracle: Oracle) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "share", no_descriptor)
            for _ in range(culprit.HELD_MAX + 1):
                searches.begin(b"x")
        assert searches.told == [None] * (culprit.HELD_MAX + 1)
        searches.begin(b"\r\nworm")
        assert (await searches.all(culprit.HELD_MAX + 2))[-1] is not None

    play(story, worm=Infected("Worm"))
    assert lines(caplog)[0] == "10002A: where virus Worm is was not found out: Too many open files"


def test_at_the_end_each_has_its_word_whether_it_had_begun_or_not(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        oracle.answers.clear()
        for _ in range(3):
            searches.begin(b"\r\nworm")
        await until(lambda: len(oracle.seen) == 2)
        searches.begin(b"\r\nworm")
        await searches.culprits.end(0)
        assert searches.told == [None] * 4

    play(story)
    assert set(lines(caplog)) == {
        "10002A: where virus Worm is was not found out: the daemon stops, or has other scanners"
    }


def test_the_end_waits_for_those_that_have_come_so_far(play: Callable[..., None]) -> None:
    async def story(searches: Searches, oracle: Oracle) -> None:
        searches.begin(message(b"worm"))
        await searches.culprits.end(5)
        assert [found is not None for found in searches.told] == [True]

    play(story, worm=Infected("Worm"))


def test_while_a_large_message_is_taken_apart_others_get_their_turn(play: Callable[..., None]) -> None:
    async def beat(ticks: list[float]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            ticks.append(loop.time())
            await asyncio.sleep(0)

    async def story(searches: Searches, oracle: Oracle) -> None:
        ticks: list[float] = []
        task = asyncio.create_task(beat(ticks))
        await asyncio.sleep(0)
        searches.begin(message(b"x" * 3_000_000))
        begun = len(ticks)
        await searches.all()
        task.cancel()
        assert len(ticks) - begun > 150

    play(story)
