"""clamsmtpctl scan, beside a real clamd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clamsmtpd.ctl.main import cli
from tests.support.clamd import EICAR, EICAR_NAME, Clamd

pytestmark = pytest.mark.integration

CLEAN = b"Subject: lunch\n\nAt noon?\n"
INFECTED = b"Subject: x\n\n" + EICAR + b"\n"


@pytest.fixture(scope="module")
def clamd() -> Iterator[Clamd]:
    with Clamd() as running:
        yield running


def settings(folder: Path, clamd: Clamd, *lines: str) -> str:
    path = folder / "conf"
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    own = [f"ClamAddress: {clamd.unix}", "OutAddress: 127.0.0.1:10026", f"TempDirectory: {spool}"]
    path.write_text("\n".join([*own, *lines, ""]))
    return str(path)


def scan(configuration: str, *arguments: str, given: bytes = b"") -> Result:
    return CliRunner().invoke(cli, ["-f", configuration, "scan", *arguments], input=given)


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ((), "drop (Action: drop); the client is told: 250 2.0.0 Virus found; message discarded"),
        (("Action: bounce",), "bounce (Action: bounce); the client is told: 550 "),
        (("Action: pass",), f"deliver (Action: pass); added: X-Virus-Infected: {EICAR_NAME}"),
        (("ActionFor: eicar* bounce",), "bounce (ActionFor: eicar* bounce); the client is told: 550 "),
    ],
)
def test_what_would_become_of_a_virus_and_by_which_setting(
    clamd: Clamd, tmp_path: Path, lines: tuple[str, ...], line: str
) -> None:
    message = tmp_path / "message"
    message.write_bytes(INFECTED)
    done = scan(settings(tmp_path, clamd, *lines), str(message))
    assert done.exit_code == 1
    assert done.output.startswith(f"{message}: {EICAR_NAME}: {line}")
    assert not list((tmp_path / "spool").iterdir())


def test_a_clean_message_is_clean_from_a_file_and_from_standard_input(clamd: Clamd, tmp_path: Path) -> None:
    configuration = settings(tmp_path, clamd, "Quarantine: on", f"VirusAction: touch {tmp_path}/ran")
    done = scan(configuration, "-", given=CLEAN)
    assert (done.exit_code, done.output) == (0, "-: clean: deliver (it is clean)\n")
    assert scan(configuration, "-", given=INFECTED).exit_code == 1
    assert not list((tmp_path / "spool").iterdir())
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_summed_up(clamd: Clamd, tmp_path: Path) -> None:
    box = tmp_path / "Maildir"
    for folder in ("cur", "new", "tmp", ".Archive/cur", ".Archive/new", ".Archive/tmp"):
        (box / folder).mkdir(parents=True)
    for number in range(120):
        (box / "cur" / f"{number}").write_bytes(CLEAN + str(number).encode())
    for number in range(3):
        (box / ".Archive/new" / f"{number}").write_bytes(INFECTED + str(number).encode())
    (box / "tmp" / "half").write_bytes(INFECTED)
    (box / "dovecot-uidlist").write_text("3 V1\n")
    done = scan(settings(tmp_path, clamd), str(box))
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert len([line for line in lines if line.startswith(str(box))]) == 3
    assert lines[-2:] == ["123 messages: deliver 120, drop 3", f"       3  {EICAR_NAME}: drop (Action: drop)"]
    told = json.loads(scan(settings(tmp_path, clamd), "--json", str(box)).output)
    assert told["summary"]["outcomes"] == {"deliver": 120, "drop": 3}
    assert len(told["messages"]) == 123
    assert told["summary"]["grounds"] == [
        {"found": EICAR_NAME, "outcome": "drop", "setting": "Action: drop", "messages": 3}
    ]


def test_line_ends_of_a_file_are_those_of_mail_wherever_it_is_cut(clamd: Clamd, tmp_path: Path) -> None:
    head = b"Subject: x\nX-Virus-Scanned: forged\n\n"
    message = tmp_path / "message"
    message.write_bytes(head + b"x" * (65536 - len(head) - 1) + b"\r\n.\n..\n" + EICAR + b"\r\n.\r\nlast")
    done = scan(settings(tmp_path, clamd, "Action: pass"), "--json", str(message))
    (found,) = json.loads(done.output)["messages"]
    assert (found["verdict"], found["outcome"]) == ("infected", "deliver")
    assert found["renamed"] == 1


def test_what_cannot_be_read_is_one_line_and_no_scanner_is_one_too(clamd: Clamd, tmp_path: Path) -> None:
    done = scan(settings(tmp_path, clamd), str(tmp_path / "none"))
    assert (done.exit_code, done.output) == (1, f"{tmp_path}/none: cannot be read: No such file or directory\n")
    configuration = tmp_path / "other"
    configuration.write_text(f"OutAddress: 10026\nClamAddress: {tmp_path}/clamd\nTimeOut: 1\n")
    done = scan(str(configuration), "-", given=CLEAN)
    assert done.exit_code == 3
    assert done.output.startswith(f"clamsmtpctl: no scanner can be used: clamd at {tmp_path}/clamd: ")


def test_a_disguised_end_would_be_refused(clamd: Clamd, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_bytes(b"Subject: x\r\n\r\ntext\r.\rMAIL FROM:<x>\r\n")
    done = scan(settings(tmp_path, clamd), str(message))
    assert done.exit_code == 1
    assert "bounce (a dot stands between odd line ends); the client is told: 5" in done.output


def test_more_forged_fields_than_are_renamed_is_a_refusal_of_a_clean_message(clamd: Clamd, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_bytes(b"X-Virus-Scanned: yes\n" * 101 + CLEAN)
    done = scan(settings(tmp_path, clamd), str(message))
    assert done.exit_code == 1
    assert f"{message}: clean: bounce (more than 100 header fields pretend to be ours); the client is told: 550 " in (
        done.output
    )


def test_a_message_that_is_too_large_for_clamd_is_dealt_with_as_oversize_says(tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_bytes(CLEAN + b"x" * 300_000)
    with Clamd("MaxFileSize 100k", "MaxScanSize 100k", "StreamMaxLength 100k") as small:
        done = scan(settings(tmp_path, small), str(message))
        assert done.exit_code == 1
        assert done.output.startswith(f"{message}: oversize: defer (Oversize: defer; the message has 300")
        assert "; the client is told: 4" in done.output
        done = scan(settings(tmp_path, small, "Oversize: pass"), str(message))
        assert "deliver (Oversize: pass; " in done.output
        assert "added: X-Virus-Unscanned: message too large" in done.output


def test_an_mbox_is_its_messages(clamd: Clamd, tmp_path: Path) -> None:
    box = tmp_path / "old mail"
    box.write_bytes(
        b"From a@example.com Thu Jan  1 00:00:00 2026\n" + CLEAN + b"\nFrom b Thu Jan  1 00:00:01 2026\n" + INFECTED
    )
    done = scan(settings(tmp_path, clamd), "--all", str(box))
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        f"{box}#1: clean: deliver (it is clean)",
        f"{box}#2: {EICAR_NAME}: drop (Action: drop); the client is told: 250 2.0.0 Virus found; message discarded",
        "2 messages: deliver 1, drop 1",
        f"       1  {EICAR_NAME}: drop (Action: drop)",
    ]


def test_thousands_of_messages_take_no_more_memory_than_a_few(clamd: Clamd, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    for number in range(3000):
        (box / f"{number:04}").write_bytes(CLEAN + b"%d" % number)
    configuration = settings(tmp_path, clamd)
    peaks = [_peak(configuration, str(box / "0001")), _peak(configuration, str(box))]
    # 3000 tasks, with a spool each, would be 15 MB and more.
    assert peaks[1] - peaks[0] < 6 * 1024


def _peak(configuration: str, *files: str) -> int:
    """Return the largest size of a scan of these files, in KiB."""
    script = (
        "import resource, sys\n"
        "from click.testing import CliRunner\n"
        "from clamsmtpd.ctl.main import cli\n"
        "done = CliRunner().invoke(cli, sys.argv[1:])\n"
        "assert done.exit_code == 0, done.output\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", script, "-f", configuration, "scan", *files]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_folder_in_a_terminal_has_a_bar(clamd: Clamd, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    for number in range(20):
        (box / f"{number:04}").write_bytes(CLEAN + b"%d" % number)
    (box / "bad [red]").write_bytes(INFECTED)
    main, terminal = os.openpty()
    command = [sys.executable, "-m", "clamsmtpd.ctl", "-f", settings(tmp_path, clamd), "scan", str(box)]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(terminal)
        told = b""
        # The other end of a terminal that nobody has any more is an error to read (EIO).
        while piece := _read_terminal(main):
            told += piece
        assert process.wait() == 1
    os.close(main)
    assert b"messages \x1b" in told or b"%" in told
    assert f"bad [red]: {EICAR_NAME}: drop".encode() in told
    assert told.decode().splitlines()[-2].strip().endswith("21 messages: deliver 20, drop 1")


def _read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
