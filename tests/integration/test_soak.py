"""The soak, in a short form: not many messages, but each kind of trouble."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from soak.chaos import KINDS
from soak.reckoning import RULES

ROOT = Path(__file__).resolve().parents[2]


# It takes some forty seconds where nothing else runs.
@pytest.mark.timeout(170)
def test_no_promise_is_broken_while_everything_is_killed_at_random() -> None:
    command = [sys.executable, "-m", "soak", "--messages", "360", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=160, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    table = {row[0]: row[1] for row in rows}
    assert all(int(table[kind]) > 0 for kind in KINDS)
    assert all(table[what] == "none" for what, _ in RULES)
    assert (table["sent"], table["of these infected"]) == ("360", "18")


def test_it_wants_a_worker_that_can_be_killed() -> None:
    command = [sys.executable, "-m", "soak", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "two or more" in done.stderr
