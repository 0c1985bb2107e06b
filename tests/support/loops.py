"""What runs a coroutine for a test, on one kind of event loop after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Run", "until"]

Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def until(condition: Callable[[], object], limit: float = 10.0) -> None:
    """Wait until ``condition`` is true, and fail after ``limit`` seconds."""
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110 - what is waited for is in another's hands
            await asyncio.sleep(0.001)
