"""The clock of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from clamsmtpd.deadlines import LEAST_RATE, Deadline
from clamsmtpd.smtp.events import Awaits

TIME_OUT = 0.3


def watched(story: Callable[[Deadline, list[float]], Coroutine[Any, Any, None]]) -> list[float]:
    """Run a story with a deadline; return the seconds at which it expired."""
    expired: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        deadline = Deadline(TIME_OUT, lambda: expired.append(loop.time() - begin))
        await story(deadline, expired)
        deadline.cancel()
        await asyncio.sleep(2 * TIME_OUT)

    asyncio.run(main())
    return expired


def test_a_step_that_does_not_come_expires() -> None:
    async def story(deadline: Deadline, expired: list[float]) -> None:
        deadline.watch(Awaits.COMMAND, 1, 0)
        await asyncio.sleep(1.5 * TIME_OUT)
        assert len(expired) == 1

    (at,) = watched(story)
    assert TIME_OUT <= at < 2 * TIME_OUT


def test_octets_are_no_steps_of_a_command() -> None:
    async def story(deadline: Deadline, expired: list[float]) -> None:
        for octets in range(15):
            deadline.watch(Awaits.COMMAND, 1, octets * 1000)
            await asyncio.sleep(TIME_OUT / 10)
        assert len(expired) == 1

    watched(story)


def test_each_step_has_its_own_time() -> None:
    async def story(deadline: Deadline, expired: list[float]) -> None:
        for step in range(10):
            deadline.watch(Awaits.REPLY, step, 0)
            await asyncio.sleep(TIME_OUT / 3)
        assert expired == []

    watched(story)


def test_a_text_that_moves_fast_enough_has_time() -> None:
    async def story(deadline: Deadline, expired: list[float]) -> None:
        for number in range(10):
            deadline.watch(Awaits.DATA, 1, int(number * LEAST_RATE * TIME_OUT))
            await asyncio.sleep(TIME_OUT / 3)
        assert expired == []

    watched(story)


def test_a_text_that_dribbles_has_not() -> None:
    async def story(deadline: Deadline, expired: list[float]) -> None:
        for number in range(15):
            deadline.watch(Awaits.TRANSMISSION, 1, number // 5)
            await asyncio.sleep(TIME_OUT / 10)
        assert len(expired) == 1

    watched(story)


def test_the_verdict_is_not_watched_and_what_follows_it_is() -> None:
    async def story(deadline: Deadline, expired: list[float]) -> None:
        deadline.watch(Awaits.VERDICT, 1, 0)
        await asyncio.sleep(3.5 * TIME_OUT)
        assert expired == []
        deadline.watch(Awaits.REPLY, 2, 0)
        await asyncio.sleep(1.5 * TIME_OUT)
        assert len(expired) == 1

    watched(story)


def test_the_final_reply_has_ten_minutes_and_what_follows_it_has_not() -> None:
    async def story(deadline: Deadline, expired: list[float]) -> None:
        deadline.watch(Awaits.FINAL_REPLY, 1, 0)
        await asyncio.sleep(2 * TIME_OUT)
        assert expired == []
        deadline.watch(Awaits.COMMAND, 2, 0)
        await asyncio.sleep(1.5 * TIME_OUT)
        assert len(expired) == 1

    watched(story)


def test_it_expires_again_while_nothing_changes() -> None:
    async def story(deadline: Deadline, expired: list[float]) -> None:
        deadline.watch(Awaits.NOTHING, 1, 0)
        await asyncio.sleep(2.5 * TIME_OUT)
        assert len(expired) == 2

    watched(story)
