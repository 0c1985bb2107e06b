"""The tutorial: its settings, its two messages, and the story of the one that was refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.howto import HowTo
from tests.support.process import free_port
from tests.support.sink import Sink


def test_a_clean_message_arrives_and_an_infected_one_is_refused(
    clamd: Clamd, sink: Sink, start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    port = free_port()
    howto = HowTo(
        "tutorial",
        {
            "127.0.0.1:10025": f"127.0.0.1:{port}",
            "127.0.0.1:10026": str(sink.address),
            "/run/clamav/clamd.ctl": clamd.unix.path,
            "/tmp/tutorial": str(tmp_path),
        },
    )
    daemon = start_daemon(*howto.settings(), level=3)
    daemon.wait_for_log("ClamAV ")
    (tmp_path / "eicar.com").write_bytes(EICAR)
    swaks = ["swaks", "--server", f"127.0.0.1:{port}", "--from", "alice@example.org", "--to", "bob@example.org"]
    for words, status, said in (
        (["--body", "hello"], 0, "<-  250 "),
        (["--attach", f"@{tmp_path / 'eicar.com'}"], 26, "<** 550 5.7.1 Virus found; message refused"),
    ):
        run = subprocess.run([*swaks, *words], capture_output=True, text=True, check=False, timeout=30)
        assert run.returncode == status, run.stdout + run.stderr
        assert said in run.stdout
    howto.check_seen("log.txt", daemon.log())
    howto.check_used()
    (text,) = sink.messages
    assert b"X-Virus-Scanned: ClamAV using ClamSMTP\r\n" in text
    # The board is told of each second.
    command = [sys.executable, "-m", "clamsmtpd.ctl", "-f", str(daemon.configuration), "explain", "100001"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert "decided: bounce" in told.stdout, told.stderr
