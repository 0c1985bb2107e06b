"""What is measured of every contender: one round at a time, so that they can take turns."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import Kind, Running, Stage
from bench.figures import ideal_rate
from bench.machine import cpu_seconds, proportional_memory

__all__ = ["SCENARIOS", "Length", "LostMailError", "Scenario", "measure"]

_BENCH = Path(__file__).resolve().parent


class LostMailError(Exception):
    """A message failed, or the next hop took another number of them than clients were told."""


@dataclass(frozen=True)
class Scenario:
    """One kind of load. ``each``: a connection for each message. ``production``: a database of that size."""

    name: str
    title: str
    sessions: int
    size: int = 4_000
    each: bool = False
    production: bool = False


SCENARIOS = (
    Scenario("kept-4", "4 KB, 4 sessions, connections kept", 4),
    Scenario("kept-10", "4 KB, 10 sessions, connections kept", 10),
    Scenario("kept-50", "4 KB, 50 sessions, connections kept", 50),
    Scenario("each-10", "4 KB, 10 sessions, a connection each", 10, each=True),
    Scenario("each-50", "4 KB, 50 sessions, a connection each", 50, each=True),
    Scenario("1mb", "1 MB, 4 sessions, connections kept", 4, size=1_000_000),
    Scenario("10mb", "10 MB, 2 sessions, connections kept", 2, size=10_000_000),
    Scenario("database", "4 KB, 10 sessions, production-size database", 10, production=True),
)


@dataclass(frozen=True)
class Length:
    """How long one round is: until a time or, if it is not 0, a number of messages has passed.

    No more sessions take part than there are messages, and no message is larger than ``size_max``.
    """

    seconds: float
    messages: int = 0
    size_max: int = sys.maxsize

    def arguments(self) -> list[str]:
        """Return it as the programs here take it."""
        return [f"--messages={self.messages}"] if self.messages else [f"--seconds={self.seconds}"]


def measure(stage: Stage, running: Running, scenario: Scenario, length: Length) -> dict[str, float]:
    """Send mail once; return figures by their names.

    ``rate`` messages a second, ``megabytes`` a second (10^6 octets), ``p50`` and ``p99`` of a message's time in ms,
    ``proxy``, ``clamd``, ``load`` and ``sink`` CPU ms a message, ``memory`` of the proxy in octets (PSS, right after
    the last message), ``share`` of the ideal rate, ``stalls`` as the load generator counts them. What a contender does
    not have is NaN.
    Raises LostMailError.
    """
    alone = running.contender.kind is Kind.CLAMD
    command = [stage.python.path]
    command += (
        [str(_BENCH / "scan.py"), stage.clamd.unix.path] if alone else [str(_BENCH / "load.py"), str(running.port)]
    )
    sessions = min(scenario.sessions, length.messages or scenario.sessions)
    command += [f"--sessions={sessions}", f"--size={min(scenario.size, length.size_max)}", *length.arguments()]
    if scenario.each and not alone:
        command.append("--each")
    pids = {"clamd": stage.clamd.pid, "sink": stage.sink.pid}
    if running.program:
        pids["proxy"] = running.program.pid
    taken = stage.taken()
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    memory = proportional_memory(pids["proxy"]) if running.program else math.nan
    # What ends a message is not all that it costs: connections are closed, files are given back.
    time.sleep(min(0.1, length.seconds))
    spent = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    spent["load"] = printed["cpu"]
    done = printed["messages"]
    if printed["failure"]:
        raise LostMailError(printed["failure"])
    arrived = stage.taken() - taken
    if not alone and arrived != done:
        raise LostMailError(f"clients were told of {done} messages, the next hop took {arrived}")
    ideal = ideal_rate(len(os.sched_getaffinity(0)), sum(spent[name] for name in ("clamd", "load", "sink")) / done)
    return {
        **{name: printed[name] for name in ("rate", "megabytes", "p50", "p99")},
        **{name: spent.get(name, math.nan) / done * 1000 for name in ("proxy", "clamd", "load", "sink")},
        "memory": memory,
        "stalls": printed.get("stalls", 0),
        "share": printed["rate"] / ideal if running.program else math.nan,
    }
