"""What a 4 KB message costs in CPU time of the filter, beside the original clamsmtpd, in one run.

Real clamd, Postfix's smtp-source and smtp-sink around the filter, everything on loopback. The two filters take
turns, so that a machine that gets slower or faster during the run does so for both; medians are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.clamd import Clamd
from tests.support.process import Program, accepts, free_port

ROOT = Path(__file__).resolve().parent.parent
ORIGINALS = (Path("/usr/sbin/clamsmtpd"), ROOT / ".build/root/usr/sbin/clamsmtpd")


@contextlib.contextmanager
def filter_running(
    command: list[str], folder: Path, clamd: Clamd, out: int, name: str
) -> Iterator[tuple[Program, int]]:
    """Run a filter with a settings file that both programs understand; yield it and its port."""
    port = free_port()
    spool = folder / f"spool-{name}"
    spool.mkdir(exist_ok=True)
    config = folder / f"{name}.conf"
    config.write_text(
        f"Listen: 127.0.0.1:{port}\nOutAddress: 127.0.0.1:{out}\nClamAddress: {clamd.unix}\nTempDirectory: {spool}\n"
    )
    program = Program([*command, "-d", "1", "-f", str(config)], output=folder / f"{name}.log")
    try:
        program.wait_until(lambda: accepts(("127.0.0.1", port)), f"{name} to accept connections")
        yield program, port
    finally:
        program.stop()


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process, all of its threads, those that ended as well (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(program: Program, port: int, *, messages: int, sessions: int, keep: bool) -> tuple[float, float]:
    """Send messages; return the filter's CPU milliseconds for each, and messages a second."""
    command = ["smtp-source", "-m", str(messages), "-s", str(sessions), "-l", "4000", f"127.0.0.1:{port}"]
    if keep:
        command.insert(1, "-d")
    before, begin = cpu_seconds(program.pid), time.monotonic()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    elapsed = time.monotonic() - begin
    time.sleep(0.2)
    return (cpu_seconds(program.pid) - before) / messages * 1000, messages / elapsed


def main() -> int:
    """Run the comparison and print it as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--messages", type=int, default=1000, help="messages in each round")
    parser.add_argument("-r", "--rounds", type=int, default=5, help="rounds; the median is shown")
    parser.add_argument("-s", "--sessions", type=int, default=4, help="sessions at once")
    options = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for tool in ("smtp-source", "smtp-sink", "clamd"):
        if shutil.which(tool) is None:
            print(f"{tool} is missing: scripts/setup test installs it", file=sys.stderr)
            return 1
    filters = {"clamsmtpd (this one)": [sys.executable, "-m", "clamsmtpd"]}
    original = next((path for path in ORIGINALS if path.exists()), None)
    if original is None:
        print("SKIPPED: the original clamsmtpd 1.10 is not to be had here", file=sys.stderr)
    else:
        filters["clamsmtpd 1.10 (original)"] = [str(original)]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        clamd = stack.enter_context(Clamd("MaxThreads 20"))
        out = free_port()
        as_user = ("-u", "nobody") if os.geteuid() == 0 else ()
        sink = Program(["smtp-sink", *as_user, f"127.0.0.1:{out}", "1000"], output=folder / "sink.log")
        stack.callback(sink.stop)
        sink.wait_until(lambda: accepts(("127.0.0.1", out)), "smtp-sink to accept connections")
        running = {
            title: stack.enter_context(filter_running(command, folder, clamd, out, str(number)))
            for number, (title, command) in enumerate(filters.items())
        }
        found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
        for keep in (True, False):
            for counted in range(-1, options.rounds):
                for title, (program, port) in running.items():
                    # The first round warms up, and is not counted.
                    messages = options.messages if counted >= 0 else 50
                    result = measure(program, port, messages=messages, sessions=options.sessions, keep=keep)
                    if counted >= 0:
                        found.setdefault((title, keep), []).append(result)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}; ", end="")
    print(f"4 KB messages, {options.sessions} sessions, medians of {options.rounds} x {options.messages}")
    print(f"{'':28}{'a connection kept':>24}{'a connection each':>24}")
    print(f"{'':28}{'CPU ms':>12}{'a second':>12}{'CPU ms':>12}{'a second':>12}")
    for title in filters:
        row = f"{title:28}"
        for keep in (True, False):
            cpu, rate = (statistics.median(column) for column in zip(*found[title, keep], strict=True))
            row += f"{cpu:12.2f}{rate:12.0f}"
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
