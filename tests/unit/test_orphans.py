"""What goes on when nobody waits for it any more."""

from __future__ import annotations

import asyncio

from clamsmtpd.orphans import ORPHANS_MAX, Orphans


def test_what_is_taken_may_end() -> None:
    async def main() -> None:
        orphans = Orphans()
        end = asyncio.Event()

        async def wait() -> None:
            await end.wait()

        task = asyncio.ensure_future(wait())
        orphans.take(task)
        assert len(orphans) == 1
        end.set()
        await task
        await asyncio.sleep(0)
        assert len(orphans) == 0

    asyncio.run(main())


def test_there_is_a_limit_and_an_end_to_them() -> None:
    async def main() -> None:
        orphans = Orphans()
        tasks = [asyncio.ensure_future(asyncio.Event().wait()) for _ in range(ORPHANS_MAX + 1)]
        for task in tasks:
            orphans.take(task)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert [task.cancelled() for task in tasks] == [False] * ORPHANS_MAX + [True]
        await orphans.end()
        assert all(task.cancelled() for task in tasks)
        assert len(orphans) == 0

    asyncio.run(main())
