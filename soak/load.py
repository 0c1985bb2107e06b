"""The clients: some twenty sessions at once that send the messages of a range, and again what was deferred.

It prints how many messages it has done with, a line now and then. How each try ended goes to the file of records.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from soak.client import Client, Leave, Letter, Outcome, Way, unreachable
from soak.letters import Letters
from soak.records import End, Recorder, Try

#: Of a hundred tries so many have a client that leaves.
_LEAVERS = 4
#: Of a hundred messages so many are tried again when they were not taken, and how often each is tried at most.
_PERSISTENT = 80
_ATTEMPTS_MAX = 6
#: Messages by one connection, where it is kept.
_KEPT = 50
#: Seconds for which a client tries to connect.
_CONNECT_PATIENCE = 120.0


@dataclass(frozen=True, slots=True, order=True)
class _Job:
    due: float
    number: int
    attempt: int


class Load:
    """All sessions. Messages from ``first`` on, ``count`` of them, are begun at ``rate`` a second.

    What was not taken is tried again after ``pause`` seconds at most.
    """

    def __init__(
        self, port: int, letters: Letters, recorder: Recorder, *, seed: int, rate: float, pause: float
    ) -> None:
        self._port = port
        self._letters = letters
        self._recorder = recorder
        self._seed = seed
        self._rate = rate
        self._pause = pause
        self._jobs: list[_Job] = []
        self._left = 0
        self.done = 0

    async def run(self, first: int, count: int, sessions: int) -> None:
        """Send the messages; return when each has been taken or given up."""
        begin = time.monotonic()
        self._jobs = [_Job(begin + place / self._rate, first + place, 1) for place in range(count)]
        self._left = count
        telling = asyncio.ensure_future(self._tell())
        # Every way of sending comes with both kinds of connection.
        kinds = itertools.cycle((way, kept) for kept in (True, False) for way in Way)
        async with asyncio.TaskGroup() as group:
            for number in range(sessions):
                way, kept = next(kinds)
                group.create_task(self._session(way, random.Random(f"{self._seed} session {first} {number}"), kept))
        telling.cancel()

    async def _tell(self) -> None:
        while True:
            print(self.done, flush=True)
            await asyncio.sleep(1)

    async def _session(self, way: Way, chance: random.Random, kept: bool) -> None:  # noqa: FBT001
        client: Client | None = None
        sent = 0
        while (job := await self._next()) is not None:
            outcome: Outcome | None = None
            if client is None or not client.usable:
                client, outcome = await self._connect(way, chance)
                sent = 0
            begin = time.monotonic()
            if outcome is None and client is not None:
                outcome = await client.send(self._letter(job))
            assert outcome is not None
            sent += 1
            self._note(job, outcome, time.monotonic() - begin)
            if client is not None and not client.usable:
                client.close()
            elif client is not None and not (kept and sent < _KEPT):
                await client.quit()
        if client is not None and client.usable:
            await client.quit()

    async def _connect(self, way: Way, chance: random.Random) -> tuple[Client | None, Outcome | None]:
        """Connect, again and again while nobody listens or all are turned away; return a client that may send.

        Without one, return what came of it. To be turned away is no try: nobody was told of the message.
        """
        deadline = time.monotonic() + _CONNECT_PATIENCE
        while True:
            try:
                client = await asyncio.wait_for(Client.connect(self._port, way, chance), _CONNECT_PATIENCE)
                outcome = await client.greet()
            except OSError as error:
                outcome = Outcome(End.LOST, whole=False, reply=str(error))
            else:
                if outcome is None or outcome.end is End.SILENT:
                    return client, outcome
                client.close()
            if time.monotonic() > deadline:
                return None, unreachable(f"not served within {_CONNECT_PATIENCE:g} s: {outcome.reply}")
            await asyncio.sleep(chance.uniform(0.05, 0.3))

    async def _next(self) -> _Job | None:
        """Return the next thing to send, when it is due; None when there is none left, nor any to come."""
        while self._left:
            now = time.monotonic()
            if self._jobs and self._jobs[0].due <= now:
                return heapq.heappop(self._jobs)
            # What is tried just now may come back.
            await asyncio.sleep(min(0.1, self._jobs[0].due - now) if self._jobs else 0.1)
        return None

    def _letter(self, job: _Job) -> Letter:
        chance = random.Random(f"{self._seed} letter {job.number} {job.attempt}")
        leave = chance.choice(list(Leave)) if chance.random() * 100 < _LEAVERS else None
        return Letter(job.number, job.attempt, self._letters.text(job.number), leave)

    def _note(self, job: _Job, outcome: Outcome, seconds: float) -> None:
        done = Try(job.number, job.attempt, outcome.end, outcome.whole, outcome.reply, round(seconds, 3))
        self._recorder.write(done)
        chance = random.Random(f"{self._seed} again {job.number} {job.attempt}")
        persistent = random.Random(f"{self._seed} persistent {job.number}").random() * 100 < _PERSISTENT
        refused = done.code in (2, 5) or done.end is End.SILENT
        if persistent and not refused and job.attempt < _ATTEMPTS_MAX:
            heapq.heappush(
                self._jobs,
                _Job(time.monotonic() + chance.uniform(self._pause / 8, self._pause), job.number, job.attempt + 1),
            )
        else:
            self._left -= 1
            self.done += 1


def main() -> int:
    """Send what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int, help="port on 127.0.0.1")
    parser.add_argument("records", type=Path, help="file to append to")
    parser.add_argument("--first", type=int, default=0, help="number of the first message")
    parser.add_argument("--count", type=int, default=100, help="how many messages")
    parser.add_argument("--seed", type=int, default=0, help="of the messages and all else that is drawn")
    parser.add_argument("--rate", type=float, default=20, help="messages a second that are begun")
    parser.add_argument("--sessions", type=int, default=20, help="connections at once")
    parser.add_argument("--pause", type=float, default=4, help="seconds until the next try of a message, at most")
    options = parser.parse_args()
    recorder = Recorder(options.records)
    letters = Letters(options.seed)
    load = Load(options.port, letters, recorder, seed=options.seed, rate=options.rate, pause=options.pause)
    asyncio.run(load.run(options.first, options.count, options.sessions))
    recorder.close()
    print(load.done, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
