"""What the soak takes for a leak, and how it looks at a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from soak.figures import Figures, Process, descendants_by_mark, leaks, look

MIB = 1024 * 1024
BEFORE = Figures(Process(1, 20, 30 * MIB), [Process(2, 15, 24 * MIB), Process(3, 15, 22 * MIB)], zombies=0)


def test_a_daemon_that_holds_what_it_held_has_no_leak() -> None:
    assert leaks(BEFORE, BEFORE) == []


def test_some_memory_and_a_kept_connection_are_no_leak() -> None:
    after = Figures(Process(1, 20, 31 * MIB), [Process(4, 17, 27 * MIB), Process(5, 16, 25 * MIB)], zombies=0)
    assert leaks(BEFORE, after) == []


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (replace(BEFORE, zombies=1), "1 zombies"),
        (replace(BEFORE, others=BEFORE.others[:1]), "2 processes instead of 3"),
        (replace(BEFORE, others=[*BEFORE.others, Process(9, 0, MIB)]), "4 processes instead of 3"),
        (replace(BEFORE, first=Process(1, 27, 30 * MIB)), "57 descriptors instead of 50"),
        (replace(BEFORE, first=Process(1, 20, 60 * MIB)), "the first process has grown from 30 to 60 MiB"),
        (
            replace(BEFORE, others=[BEFORE.others[0], Process(3, 15, 50 * MIB)]),
            "the largest worker has grown from 24 to 50 MiB",
        ),
    ],
)
def test_what_it_has_more_of_than_before_is_a_leak(after: Figures, told: str) -> None:
    assert leaks(BEFORE, after) == [told]


def test_a_process_is_seen_with_its_children_and_zombies_and_found_by_its_mark() -> None:
    program = (
        "import os, time\n"
        "os.fork() or os._exit(0)\n"  # a zombie: nobody waits for it
        "os.fork() or time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "SOAK_TEST": "found-by-this"}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as process:
        try:
            deadline = time.monotonic() + 20
            while (found := look(process.pid)).zombies != 1 or found.processes != 2:
                assert time.monotonic() < deadline, found
                time.sleep(0.02)
            assert found.first.pid == process.pid
            assert found.first.resident > MIB
            assert found.descriptors >= 6
            marked = dict(descendants_by_mark("found-by-this"))
            assert {process.pid, *(other.pid for other in found.others)} <= set(marked)
            assert "time.sleep(60)" in marked[process.pid]
        finally:
            for pid in [*(other.pid for other in look(process.pid).others), process.pid]:
                os.kill(pid, 9)
