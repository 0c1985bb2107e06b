"""The clock of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from clamsmtpd.deadlines import LEAST_RATE, Deadline, Progress
from clamsmtpd.smtp.events import Awaits

TIME_OUT = 0.4


class Dialogue:
    """A dialogue that a deadline looks at, and when that expired, in seconds from the start."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.begin = self.loop.time()
        self.now: Progress = (Awaits.COMMAND, 1, 0)
        self.looks = 0
        self.expired: list[float] = []
        expired = lambda: self.expired.append(self.loop.time() - self.begin)  # noqa: E731
        self.deadline = Deadline(TIME_OUT, self.look, expired, self.loop)
        self.deadline.start()

    def look(self) -> Progress:
        self.looks += 1
        return self.now


def watched(story: Callable[[Dialogue], Coroutine[Any, Any, None]]) -> list[float]:
    """Run a story with a deadline; return when it expired."""

    async def main() -> list[float]:
        dialogue = Dialogue()
        await story(dialogue)
        dialogue.deadline.cancel()
        expired = list(dialogue.expired)
        await asyncio.sleep(2 * TIME_OUT)
        assert dialogue.expired == expired, "it went on after it was cancelled"
        return expired

    return asyncio.run(main())


def test_a_step_that_does_not_come_expires() -> None:
    async def story(dialogue: Dialogue) -> None:
        await asyncio.sleep(1.5 * TIME_OUT)

    (at,) = watched(story)
    assert TIME_OUT <= at < 1.4 * TIME_OUT


def test_octets_are_no_steps_of_a_command() -> None:
    async def story(dialogue: Dialogue) -> None:
        for octets in range(15):
            dialogue.now = (Awaits.COMMAND, 1, octets * 1000)
            await asyncio.sleep(TIME_OUT / 10)

    assert len(watched(story)) == 1


def test_each_step_has_its_own_time() -> None:
    async def story(dialogue: Dialogue) -> None:
        for step in range(10):
            dialogue.now = (Awaits.REPLY, step, 0)
            await asyncio.sleep(TIME_OUT / 2)

    assert watched(story) == []


def test_the_time_of_a_step_is_an_eighth_more_at_the_most() -> None:
    async def story(dialogue: Dialogue) -> None:
        # The step comes just behind a look.
        await asyncio.sleep(1.05 * TIME_OUT / 8)
        dialogue.now = (Awaits.COMMAND, 2, 0)
        dialogue.begin = dialogue.loop.time()
        await asyncio.sleep(1.6 * TIME_OUT)

    (at,) = watched(story)
    assert TIME_OUT <= at < 1.4 * TIME_OUT


def test_a_text_that_moves_fast_enough_has_time() -> None:
    async def story(dialogue: Dialogue) -> None:
        for number in range(10):
            dialogue.now = (Awaits.DATA, 1, int(number * LEAST_RATE * TIME_OUT))
            await asyncio.sleep(TIME_OUT / 2)

    assert watched(story) == []


def test_a_text_that_dribbles_has_not() -> None:
    async def story(dialogue: Dialogue) -> None:
        for number in range(15):
            dialogue.now = (Awaits.TRANSMISSION, 1, number // 5)
            await asyncio.sleep(TIME_OUT / 10)

    assert len(watched(story)) == 1


def test_the_verdict_is_not_watched_and_what_follows_it_is() -> None:
    async def story(dialogue: Dialogue) -> None:
        dialogue.now = (Awaits.VERDICT, 2, 0)
        await asyncio.sleep(3.5 * TIME_OUT)
        assert dialogue.expired == []
        dialogue.now = (Awaits.REPLY, 3, 0)
        await asyncio.sleep(1.5 * TIME_OUT)

    assert len(watched(story)) == 1


def test_the_final_reply_has_ten_minutes_and_what_follows_it_has_not() -> None:
    async def story(dialogue: Dialogue) -> None:
        dialogue.now = (Awaits.FINAL_REPLY, 2, 0)
        await asyncio.sleep(2 * TIME_OUT)
        assert dialogue.expired == []
        dialogue.now = (Awaits.COMMAND, 3, 0)
        await asyncio.sleep(1.5 * TIME_OUT)

    assert len(watched(story)) == 1


def test_it_expires_again_while_nothing_changes() -> None:
    async def story(dialogue: Dialogue) -> None:
        await asyncio.sleep(2.5 * TIME_OUT)

    assert len(watched(story)) == 2


def test_to_start_again_gives_the_full_time_anew() -> None:
    async def story(dialogue: Dialogue) -> None:
        for _ in range(3):
            await asyncio.sleep(0.7 * TIME_OUT)
            dialogue.deadline.start()

    assert watched(story) == []


def test_it_looks_some_times_and_no_more() -> None:
    async def story(dialogue: Dialogue) -> None:
        await asyncio.sleep(0.95 * TIME_OUT)
        assert 4 <= dialogue.looks <= 9

    watched(story)
