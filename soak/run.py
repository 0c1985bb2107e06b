"""A whole run: a storm in which nothing is spared, one that spares the daemon, which must not leak; the reckoning."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from soak import reckoning, records
from soak.chaos import CALM, KINDS, Chaos
from soak.figures import Figures, leaks
from soak.letters import Letters
from soak.loglines import known_forms, unknown_lines
from soak.reckoning import RULES, Ledger, Message
from soak.report import Result
from soak.stage import Stage, marked, survivors

__all__ = ["Plan", "Run"]

#: The parts of all messages that are sent while nothing is spared, and while the daemon, spared, warms up.
_STORM, _WARM_UP = 0.6, 0.15
#: The part that is left for the end, at least, if a longer storm is needed for each kind of trouble to come.
_CALM_MIN = 0.1

#: Seconds beyond what the rate needs until a load that has not ended is given up.
_GRACE = 300.0

#: From so many messages on a run has the time for longer pauses, and for stops longer than the daemon waits.
_LONG = 2000
#: Seconds until a client tries again, at most, in a long run and in a short one.
_PAUSE, _SHORT_PAUSE = 4.0, 1.0
#: Seconds for which something is stopped, at most, ordinarily and now and then.
_STOPS, _SHORT_STOPS = (4.0, 17.0), (1.5, 1.5)


@dataclass(frozen=True)
class Plan:
    """What a run is to be. ``rate`` is messages a second, ``interval`` seconds between two kinds of trouble."""

    messages: int
    seed: int
    workers: int
    rate: float
    interval: float

    @classmethod
    def of(cls, messages: int, *, seed: int, workers: int, rate: float | None, interval: float | None) -> Plan:
        """Choose what is None: so that each kind of trouble comes in a short run, and in a long one often."""
        rate = rate or min(60.0, max(4.0, messages / 20))
        return cls(messages, seed, workers, rate, interval or (0.6 if messages >= _LONG else 0.5))

    @property
    def pause(self) -> float:
        """Seconds until a client tries again, at most."""
        return _PAUSE if self.messages >= _LONG else _SHORT_PAUSE

    @property
    def parts(self) -> tuple[int, int, int]:
        """How many messages are sent in each part of the run."""
        storm, warm_up = int(self.messages * _STORM), int(self.messages * _WARM_UP)
        return storm, warm_up, self.messages - storm - warm_up


class Run:
    """One run. Without ``quiet`` it prints how far it is."""

    def __init__(self, plan: Plan, *, quiet: bool) -> None:
        self._plan = plan
        self._quiet = quiet
        self._begin = time.monotonic()
        self._done = 0
        self._told = 0.0
        # The first message that was sent after the storm.
        self._spared_from = plan.messages
        self._course: list[str] = []
        self._leaks: list[str] = []
        self._rest: list[str] = []

    def run(self, *, keep: bool) -> Result:
        """Do everything; leave nothing behind but, with ``keep``, the folder."""
        plan = self._plan
        name, mark = marked()
        os.environ[name] = mark
        self._say(f"{plan.messages} messages, seed {plan.seed}, {plan.rate:g} a second")
        with Stage(seed=plan.seed, workers=plan.workers, fault=self._fault) as stage:
            chance = random.Random(f"{plan.seed} chaos")
            long = plan.messages >= _LONG
            chaos = Chaos(
                stage, chance, interval=plan.interval, stops=_STOPS if long else _SHORT_STOPS, fault=self._fault
            )
            held = self._three_parts(stage, chaos)
            stage.stop_life()
            self._rest += [f"left in TempDirectory: {name}" for name in sorted(os.listdir(stage.spool))]
        self._leaks += leaks(held[0][1], held[1][1])
        self._rest += [f"still running: {process}" for process in survivors(mark, own=os.getpid())]
        self._say("reckoning")
        result = self._reckon(stage, chaos, held)
        if keep or result.faults:
            self._say(f"records and logs: {stage.folder}")
        else:
            stage.remove()
        return result

    def _three_parts(self, stage: Stage, chaos: Chaos) -> Sequence[tuple[str, Figures]]:
        storm, warm_up, calm = self._plan.parts
        self._part(stage, chaos, list(KINDS), storm)
        while any(not chaos.counts[name] for name in KINDS) and calm > self._plan.messages * _CALM_MIN:
            # The machine was slow, or had something else to do. What has not come yet is the first to come now.
            more = calm // 3
            calm -= more
            self._part(stage, chaos, list(KINDS), more)
        # One that has not had to do with the storm: what it holds at the end is from what is counted.
        stage.stop_life()
        stage.begin_life()
        stage.life.wait_until_serving(seconds=60)
        self._spared_from = self._done
        self._part(stage, chaos, CALM, warm_up)
        before = stage.settle()
        self._part(stage, chaos, CALM, calm)
        after = stage.settle(before)
        return [(f"after {warm_up:,} messages", before), (f"after {warm_up + calm:,}", after)]

    def _part(self, stage: Stage, chaos: Chaos, kinds: Sequence[str], count: int) -> None:
        """Have so many messages sent, with trouble of these kinds meanwhile; in the end all is well again."""
        plan = self._plan
        load = stage.start_load(first=self._done, count=count, seed=plan.seed, rate=plan.rate, pause=plan.pause)
        deadline = time.monotonic() + count / plan.rate + _GRACE
        try:
            while load.running and time.monotonic() < deadline:
                chaos.tick(kinds)
                self._tell(self._done, load.text())
                time.sleep(0.02)
            if load.running:
                self._fault(f"the clients had not ended {_GRACE:g} s after they could have")
            chaos.finish()
        finally:
            status = load.stop()
        if status:
            self._fault(f"the clients ended with status {status}: {load.text()[-1000:]}")
        self._done += count

    def _tell(self, before: int, printed: str) -> None:
        now = time.monotonic()
        if now - self._told > 5:
            self._told = now
            done = printed.split()
            self._say(f"{before + int(done[-1]) if done and done[-1].isdigit() else before} messages done")

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(f"{time.monotonic() - self._begin:6.1f} s  {text}", file=sys.stderr, flush=True)

    def _fault(self, text: str) -> None:
        self._course.append(text)
        self._say(f"FAULT: {text}")

    # ---- the reckoning ------------------------------------------------------------------------

    def _reckon(self, stage: Stage, chaos: Chaos, held: Sequence[tuple[str, Figures]]) -> Result:
        plan = self._plan
        letters = Letters(plan.seed)
        messages = {
            number: _message(letters, number, spared=number >= self._spared_from) for number in range(plan.messages)
        }
        ledger = Ledger.of(messages, records.read(stage.records))
        log = stage.log.read_text().splitlines()
        promises = {what: rule(ledger) for what, rule in RULES}
        promises["the daemon started, drained and ended as it was told"] = self._course
        promises["nothing is left: no file in TempDirectory, no process"] = self._rest
        promises["no process, descriptor or memory leaked"] = self._leaks
        promises["every line in the log is one that the source makes, and no error of the daemon's own"] = (
            unknown_lines(log, known_forms())
        )
        promises["every kind of trouble came"] = [name for name in KINDS if not chaos.counts[name]]
        ends = ledger.ends()
        numbers = [
            ("sent", plan.messages),
            ("of these infected", sum(message.infected for message in ledger.messages.values())),
            ("tries", len(ledger.tries)),
            ("tries told 250", ends["2xx"]),
            ("tries told 4xx", ends["4xx"]),
            ("tries told 5xx, by the next hop", ends["5xx"]),
            ("tries whose connection was lost", ends["lost"]),
            ("tries whose client left", ends["left"]),
            ("messages delivered", len({key[0] for key, found in ledger.deliveries.items() if found})),
            ("of these twice, for a broken connection behind the text", reckoning.delivered_twice(ledger)),
            ("lives of the daemon", stage.lives),
            ("lines in its log", len(log)),
            ("longest wait of a client for one try, in seconds", round(max(t.seconds for t in ledger.tries.values()))),
            ("longest drain after SIGTERM, in seconds", round(stage.longest_drain)),
        ]
        title = f"{plan.messages:,} messages, seed {plan.seed}, {plan.workers} workers, {_machine()}:"
        troubles = {name: chaos.counts[name] for name in KINDS}
        return Result(title, numbers, troubles, held, promises, time.monotonic() - self._begin)


def _message(letters: Letters, number: int, *, spared: bool) -> Message:
    text = letters.delivered(number)
    return Message(letters.infected(number), hashlib.sha256(text).hexdigest(), len(text), spared)


def _machine() -> str:
    return f"{len(os.sched_getaffinity(0))} CPUs"
