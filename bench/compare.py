"""Measures this daemon, the original clamsmtpd, its best case, no proxy and clamd alone, in turn in one run.

Real clamd with a database of its own, a load generator and a next hop that cost little, everything on loopback and
on the same cores. A machine that gets slower or faster meanwhile does so for all; medians are shown, and ratios tell
more than figures do. Exit status: 0, whether goals are reached or not; 1 if a message failed or was lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import crowd, report
from bench.contenders import CONTENDERS, Contender, Python, Running, SkippedError, Stage, memory_folder
from bench.database import made_up
from bench.figures import medians
from bench.machine import choose_cpus
from bench.scenarios import SCENARIOS, Length, LostMailError, Scenario, measure


@dataclass(frozen=True)
class Scale:
    """How much is done. ``large`` is that many octets in each of ``large_sessions`` messages at once."""

    rounds: int
    length: Length
    warm_up: Length
    signatures: int
    open: int
    large_sessions: int
    large: int
    #: Octets a second that the slow next hop reads in each session.
    slow: int


_FULL = Scale(5, Length(2), Length(0.3), 100_000, 10_000, 200, 30_000_000, 3_000_000)
_QUICK = Scale(1, Length(1), Length(0.2), 100_000, 1_000, 200, 1_000_000, 1_000_000)
#: From this many programs that want a core on, on average before the run, figures are not to be trusted.
_BUSY = 0.5

#: So little that it only shows that everything still runs.
_LEAST = Scale(1, Length(0, 4, 300_000), Length(0, 1, 4_000), 100, 20, 5, 400_000, 1_000_000)

_OTHERS = ("open", "large")


class Comparison:
    """The run: who takes part, and what was found so far."""

    def __init__(self, python: Python, scale: Scale, only: list[str]) -> None:
        self._python = python
        self._scale = scale
        self._only = only
        self._skipped: dict[str, str] = {}
        self._busy = os.getloadavg()[0]
        self.results: dict[str, dict[str, dict[str, float]]] = {}
        self.lost = False

    def run(self) -> None:
        """Measure everything that was asked for."""
        for production in (False, True):
            wanted = [
                scenario for scenario in SCENARIOS if scenario.production == production and self._wants(scenario.name)
            ]
            if wanted:
                self._throughput(wanted, production=production)
        scale = self._scale
        if self._wants("open"):
            for name in ("ours", "original"):
                self._crowd("open", name, lambda one: crowd.open_connections(self._python, one, scale.open))
        if self._wants("large"):
            self._crowd(
                "large",
                "ours",
                lambda one: crowd.large_messages(
                    self._python, one, sessions=scale.large_sessions, size=scale.large, slow=scale.slow
                ),
            )

    def _wants(self, name: str) -> bool:
        return not self._only or name in self._only

    def _throughput(self, scenarios: list[Scenario], *, production: bool) -> None:
        """Measure scenarios that share a clamd; all contenders stay up meanwhile."""
        settings = ("DisableCache yes",) if production else ()
        database = made_up(self._scale.signatures) if production else None
        begin = time.monotonic()
        with Stage(self._python, *settings, database=database) as stage:
            if production:
                figures = {"signatures": self._scale.signatures, "seconds": time.monotonic() - begin}
                self.results["loading"] = {"clamd": figures}
            running = []
            for contender in CONTENDERS:
                try:
                    running.append(stage.start(contender))
                except SkippedError as reason:
                    self._skip(contender, reason)
            for scenario in scenarios:
                self._rounds(stage, running, scenario)

    def _rounds(self, stage: Stage, running: list[Running], scenario: Scenario) -> None:
        found: dict[str, list[dict[str, float]]] = {}
        for number in range(-1, self._scale.rounds):
            counted = number >= 0
            _say(f"{scenario.name}: " + (f"round {number + 1} of {self._scale.rounds}" if counted else "warming up"))
            for one in running:
                length = self._scale.length if counted else self._scale.warm_up
                try:
                    sample = measure(stage, one, scenario, length)
                except LostMailError as error:
                    self._lose(scenario.name, one.contender, error)
                else:
                    if counted:
                        found.setdefault(one.contender.name, []).append(sample)
        self.results[scenario.name] = {name: medians(samples) for name, samples in found.items()}

    def _crowd(self, scenario: str, name: str, measured: Callable[[Contender], dict[str, float]]) -> None:
        """Measure one worker of ours, or the original: more of them would only hide what each does."""
        contender = _named("ours-1" if name == "ours" else name)
        _say(f"{scenario}: {contender.title}")
        found = self.results.setdefault(scenario, {})
        try:
            found[name] = measured(contender)
        except SkippedError as reason:
            self._skip(contender, reason)
        except LostMailError as error:
            self._lose(scenario, contender, error)

    def _skip(self, contender: Contender, reason: SkippedError) -> None:
        text = f"SKIPPED: {contender.title}: {reason}"
        if self._skipped.setdefault(contender.name, text) is text:
            print(text, file=sys.stderr, flush=True)
        if contender.name == "ours":
            raise reason

    def _lose(self, scenario: str, contender: Contender, error: LostMailError) -> None:
        self.lost = True
        print(f"LOST MAIL: {scenario}: {contender.title}: {error}", file=sys.stderr, flush=True)

    @property
    def how(self) -> str:
        """A sentence on the effort, and one for each contender that is missing."""
        length = self._scale.length
        each = f"{length.messages} messages" if length.messages else f"{length.seconds:g} s"
        how = f"Medians of {self._scale.rounds} rounds of {each}, all contenders in turn."
        how += f" Temporary files {'in memory' if memory_folder() else 'on disk'}."
        if self._busy > _BUSY:
            how += f" Other programs used the machine: the load average was {self._busy:.1f} before the run."
        return "\n\n".join([how, *self._skipped.values()])


def _named(name: str) -> Contender:
    return next(contender for contender in CONTENDERS if contender.name == name)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    names = [*(scenario.name for scenario in SCENARIOS), *_OTHERS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=names, help="run this scenario; may be given again")
    parser.add_argument("--rounds", type=int, help="rounds whose median is shown")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="scale", action="store_const", const=_QUICK, help="one short round, less of all")
    size.add_argument("--least", dest="scale", action="store_const", const=_LEAST, help="only show that it runs")
    parser.add_argument("--cores", type=int, default=2, help="CPUs that all programs share")
    parser.add_argument("--python", help="interpreter for all programs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, between its markers")
    parser.set_defaults(scale=_FULL)
    return parser.parse_args()


def main() -> int:
    """Run the comparison and print its tables."""
    options = _arguments()
    before, after = report.between_markers(options.markdown) if options.markdown else ("", "")
    scale: Scale = options.scale
    if options.rounds:
        scale = Scale(**{**vars(scale), "rounds": options.rounds})
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    # Inherited by all that is started.
    os.sched_setaffinity(0, choose_cpus(options.cores))
    try:
        python = Python(options.python, own=sys.executable)
        _say(f"everything runs with {python.path}, Python {python.version}, {python.build}")
        comparison = Comparison(python, scale, options.only or [])
        comparison.run()
    except SkippedError as reason:
        print(f"nothing to measure: {reason}", file=sys.stderr)
        return 1
    text = report.markdown(comparison.results, shape=report.machine_shape(python), how=comparison.how)
    print(text)
    if options.markdown:
        options.markdown.write_text(before + text + "\n" + after)
    return 1 if comparison.lost else 0


if __name__ == "__main__":
    sys.exit(main())
