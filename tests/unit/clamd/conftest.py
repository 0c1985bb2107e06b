"""What the tests of the conversation with clamd share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from tests.support.loops import Run


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on each kind of event loop; no descriptor may stay behind."""

    def run(main: Coroutine[Any, Any, Any]) -> object:
        async def watched() -> object:
            # uvloop keeps a descriptor of its own from the first server on.
            async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0):
                pass
            before = os.listdir("/proc/self/fd")
            result: object = await asyncio.wait_for(main, 30)
            assert os.listdir("/proc/self/fd") == before
            return result

        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(watched())

    return run
