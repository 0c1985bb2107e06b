"""What happens when somebody sets the clock while mail goes through."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.clamd import Clamd
from tests.support.client import Client, text_of
from tests.support.daemon import Daemon
from tests.support.faults import Outcome, Section, outcome
from tests.support.sink import Sink

SECTION = Section(
    "The clock",
    "The time of day is for header fields and the log alone. All limits of time go by a clock that nobody sets.",
)

Start = Callable[..., Daemon]

YEAR = 366 * 86_400


@pytest.fixture
def stoppable() -> Iterator[Clamd]:
    """A clamd of our own: what is done to it does not matter to others."""
    with Clamd() as running:
        yield running
        running.send(signal.SIGCONT)


@SECTION.fault(
    "It jumps a year ahead while a message comes in and is scanned.",
    heard="250",
    delivered="once",
    log="status=CLEAN",
    case=YEAR,
)
@SECTION.fault(
    "It jumps a year back while a message comes in and is scanned.",
    heard="250",
    delivered="once",
    log="status=CLEAN",
    case=-YEAR,
)
def test_it_jumps(stoppable: Clamd, sink: Sink, start_daemon: Start, tmp_path: Path, case: int) -> Outcome:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, which tests/support/jump.c needs")
    library, jump = tmp_path / "jump.so", tmp_path / "jump"
    source = Path(__file__).parent.parent / "support/jump.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O", "-o", library, source, "-ldl"], check=True)
    daemon = start_daemon(
        f"OutAddress: {sink.address}",
        f"ClamAddress: {stoppable.unix}",
        "TimeOut: 3",
        "Header: X-Scanned: %d",
        level=3,
        environment={"LD_PRELOAD": str(library), "JUMP_FILE": str(jump)},
    )
    text = text_of("message", 1_000_000)
    half = len(text) // 2
    with Client(daemon) as client:
        assert client.data() == "354"
        client.send(text[:half])
        stoppable.send(signal.SIGSTOP)
        jump.write_text(f"{case}\n")
        client.send(text[half:])
        # Longer than a look at the clock takes to come round.
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(seconds=1)
        stoppable.send(signal.SIGCONT)
        heard = client.finish()
    (delivered,) = sink.messages
    expected = datetime.fromtimestamp(datetime.now(UTC).timestamp() + case, UTC).year
    assert f" {expected} ".encode() in delivered.partition(b"X-Scanned: ")[2][:60], "the clock has not jumped"
    return outcome(daemon, sink, heard, text)
