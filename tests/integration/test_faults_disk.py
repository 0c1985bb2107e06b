"""What happens when there is something wrong with TempDirectory."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clamd import EICAR, Clamd
from tests.support.client import attempt, text_of
from tests.support.daemon import Daemon
from tests.support.faults import Outcome, Section, in_turn, outcome
from tests.support.sink import Sink

SECTION = Section(
    "The disk",
    "TempDirectory. Small messages are kept in memory (64 KB each, 64 MB of all together) and need no room there.",
)

Start = Callable[..., Daemon]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M,mode=1777", "tmpfs", str(tmp_path)], check=True)
    try:
        yield tmp_path
    finally:
        # The daemon has ended, or has it as its spool no longer.
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def start(start_daemon: Start, clamd: Clamd, sink: Sink, *lines: str) -> Daemon:
    return start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", *lines, level=3)


@pytest.mark.root
@SECTION.fault(
    "It is full while a message comes in; then a smaller one comes.",
    heard="451 4.3.1, then 250",
    delivered="once",
    log="cannot store the message in …: No space left on device",
)
def test_it_is_full(clamd: Clamd, sink: Sink, start_daemon: Start, small_disk: Path) -> Outcome:
    daemon = start(start_daemon, clamd, sink, f"TempDirectory: {small_disk}")
    small = text_of("message", 500_000)
    heard = [attempt(daemon, text_of("large", 3_000_000)), attempt(daemon, small)]
    return outcome(daemon, sink, in_turn(heard), small)


@pytest.mark.root
@SECTION.fault(
    "It is full when an infected message is to be kept (Quarantine).",
    heard="451 4.3.0",
    delivered="nothing",
    log="cannot quarantine in …No space left on device",
)
def test_it_is_full_for_the_quarantine(clamd: Clamd, sink: Sink, start_daemon: Start, small_disk: Path) -> Outcome:
    daemon = start(start_daemon, clamd, sink, f"TempDirectory: {small_disk}", "Quarantine: on")
    text = text_of("message") + EICAR + b"\r\n"
    filler = small_disk / "filler"
    with contextlib.suppress(OSError):
        filler.write_bytes(b"x" * 2_000_000)
    heard = attempt(daemon, text)
    filler.unlink()
    assert not daemon.spooled()
    return outcome(daemon, sink, heard, text)


@SECTION.fault(
    "It is gone (removed, or not mounted any more), and a large message comes; then a small one.",
    heard="451 4.3.1, then 250",
    delivered="once",
    log="cannot store the message in …: No such file or directory",
)
def test_it_is_gone(clamd: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, clamd, sink)
    shutil.rmtree(daemon.temp_directory)
    heard = [attempt(daemon, text_of("large", 100_000)), attempt(daemon, text_of("message"))]
    return outcome(daemon, sink, in_turn(heard), text_of("message"))


@SECTION.fault(
    "It is gone when an infected message is to be kept (Quarantine).",
    heard="451 4.3.0",
    delivered="nothing",
    log="cannot quarantine in …No such file or directory",
)
def test_it_is_gone_for_the_quarantine(clamd: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, clamd, sink, "Quarantine: on")
    shutil.rmtree(daemon.temp_directory)
    text = text_of("message") + EICAR + b"\r\n"
    return outcome(daemon, sink, attempt(daemon, text), text)
