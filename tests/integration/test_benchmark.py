"""The benchmark, in its shortest form: a figure of it says nothing, but all of it runs."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.contenders import CONTENDERS, Python, Stage
from bench.goals import GOALS
from bench.scenarios import SCENARIOS, Length, LostMailError, measure
from tests.support.process import Program, accepts, free_port

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def sink_running(folder: Path) -> Iterator[int]:
    port = free_port()
    program = Program([sys.executable, str(ROOT / "bench/sink.py"), str(port)], output=folder / "sink")
    try:
        program.wait_until(lambda: accepts(("127.0.0.1", port)), "the next hop of the benchmark to accept connections")
        yield port
    finally:
        program.stop()


def load(port: int, *arguments: str) -> dict[str, object]:
    command = [sys.executable, str(ROOT / "bench/load.py"), str(port), *arguments]
    printed: dict[str, object] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
    return printed


def test_everything_is_measured_and_written_to_a_page(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    command = [sys.executable, str(ROOT / "bench/compare.py"), "--least", "--markdown", str(page)]
    # The limit is that of the test; what it started is to end before it.
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    assert "LOST MAIL" not in done.stderr
    text = page.read_text()
    assert text.startswith("<!--")
    for scenario in SCENARIOS:
        assert f"**{scenario.title}**" in text
    for contender in CONTENDERS:
        there = text.count(f"| {contender.title} ")
        assert there == len(SCENARIOS) or f"SKIPPED: {contender.title}: " in done.stderr
    assert "SKIPPED: clamsmtpd, as configured by default" not in done.stderr
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    verdicts = {row[1].strip(): row[-2].strip() for row in rows}
    assert {verdicts.get(goal.measure, "") for goal in GOALS} <= {"yes", "NO", "not known"}


@pytest.mark.parametrize("arguments", [(), ("--each",)])
def test_the_next_hop_takes_every_message_that_the_load_generator_sends(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with sink_running(tmp_path) as port:
        sent = load(port, "--messages=60", "--sessions=7", "--size=5000", *arguments)
        assert (sent["messages"], sent["failure"], sent["stalls"]) == (60, "", 0)
        with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as lines:
            lines.readline()
            connection.sendall(b"STAT\r\n")
            assert lines.readline() == b"250 60\r\n"


def test_a_message_that_the_next_hop_did_not_take_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = next(contender for contender in CONTENDERS if contender.name == "none")
    with Stage(Python(None, own=sys.executable)) as stage:
        running = stage.start(straight)
        assert measure(stage, running, SCENARIOS[0], Length(0, 5))["rate"] > 0
        assert stage.taken() == 5
        counts = iter([5, 9])
        monkeypatch.setattr(stage, "taken", lambda: next(counts))
        with pytest.raises(LostMailError, match="told of 5 messages, the next hop took 4"):
            measure(stage, running, SCENARIOS[0], Length(0, 5))


def test_a_refusal_is_a_failure() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(
            [sys.executable, str(ROOT / "bench/load.py"), str(server.getsockname()[1]), "--messages=9", "--sessions=3"],
            stdout=subprocess.PIPE,
        ) as program,
    ):
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"421 4.3.2 Not now\r\n")
            printed = json.loads(program.communicate(timeout=20)[0])
    assert printed["messages"] == 0
    assert "421 4.3.2 Not now" in printed["failure"]


def test_there_is_nothing_to_measure_with_a_python_that_does_not_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench/compare.py"), "--least", "--python", str(tmp_path / "no-python")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "nothing to measure" in done.stderr
