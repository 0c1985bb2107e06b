"""What a new process keeps of the descriptors that it was started with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

#: Says what is open after shed(), and what standard error is good for. One file is our own, opened before.
PROGRAM = """
import fcntl, os, sys
os.environ["LISTEN_PID"] = os.environ.get("LISTEN_PID", "").replace("OURS", str(os.getpid()))
from clamsmtpd.descriptors import shed
with open("/etc/passwd") as file:
    own = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 40)
shed()
listing = {}
for number in range(64):
    try:
        listing[number] = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        pass
assert os.readlink(f"/proc/self/fd/{own}") == "/etc/passwd"
os.close(own)
del listing[own]
print("to standard error", file=sys.stderr, flush=True)
with open(sys.argv[1], "w") as file:
    file.write(repr(listing))
    file.write(repr([os.get_inheritable(number) for number in range(3)]))
"""


@pytest.fixture
def result(tmp_path: Path) -> str:
    return f"{tmp_path}/result"


def run(result: str, shell: str, environment: dict[str, str] | None = None) -> tuple[dict[int, str], list[bool]]:
    """Start the program as a shell does that has redirected as in ``shell``; return what is open and inherited."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -c "$1" "$2" {shell}', sys.executable, PROGRAM, result],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    assert (b"to standard error" in done.stderr) == ("2>" not in shell)
    with open(result, encoding="utf-8") as file:
        text = file.read()
    opened, _, inherited = text.partition("}")
    return eval(opened + "}"), eval(inherited)  # repr() of what the program above made


def numbers(opened: dict[int, str]) -> Sequence[int]:
    return sorted(opened)


def test_what_a_shell_has_open_is_closed_and_what_is_our_own_is_not(result: str) -> None:
    opened, _ = run(result, "3</etc/hostname 7</etc/hostname 9>/dev/null")
    assert numbers(opened) == [0, 1, 2]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_descriptor_is_nobody_elses(result: str, closed: str) -> None:
    opened, inherited = run(result, closed)
    assert numbers(opened) == [0, 1, 2]
    assert inherited == [True, True, True], "a hook has all three too"


def test_what_a_service_manager_has_given_us_is_kept(result: str) -> None:
    opened, _ = run(
        result,
        "3</etc/hostname 4</etc/hostname 5</etc/hostname",
        {"LISTEN_FDS": "2", "LISTEN_PID": "OURS"},
    )
    assert numbers(opened) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "environment",
    [
        {"LISTEN_FDS": "2", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "two", "LISTEN_PID": "OURS"},
        {"LISTEN_FDS": "-3", "LISTEN_PID": "OURS"},
    ],
)
def test_what_was_given_to_another_is_not(result: str, environment: dict[str, str]) -> None:
    opened, _ = run(result, "3</etc/hostname 4</etc/hostname", environment)
    assert numbers(opened) == [0, 1, 2]


def test_without_proc_the_first_ones_are_looked_at(result: str) -> None:
    program = PROGRAM.replace(
        "shed()\n", "real, os.listdir = os.listdir, lambda path: os.stat('/no/proc/here')\nshed()\n", 1
    )
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1" "$2" 7</etc/hostname', sys.executable, program, result],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with open(result, encoding="utf-8") as file:
        assert "hostname" not in file.read()
