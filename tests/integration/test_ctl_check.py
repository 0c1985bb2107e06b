"""clamsmtpctl check and scan, beside a real clamd and a next hop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clamsmtpd.ctl.main import cli
from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.sink import Sink

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


def test_the_next_hop_is_asked_how_large_a_message_it_takes(tmp_path: Path) -> None:
    with Sink() as hop:
        path = tmp_path / "conf"
        path.write_text(f"OutAddress: {hop.address}\nTempDirectory: {tmp_path}\nMaxConnections: 10\n")
        conf = tmp_path / "clamd.conf"
        conf.write_text("MaxFileSize 10\n")
        done = CliRunner().invoke(cli, ["check", "--clamd-conf", str(conf), str(path)])
        assert done.exit_code == 1
        assert "MaxFileSize in" in done.output
        assert CliRunner().invoke(cli, ["check", "--offline", "--clamd-conf", str(conf), str(path)]).exit_code == 0


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
    assert lines[-2:] == ["123 messages: deliver 120, drop 3", f"       3  {EICAR_NAME}"]
    told = json.loads(scan(settings(tmp_path, clamd), "--json", str(box)).output)
    assert told["summary"]["outcomes"] == {"deliver": 120, "drop": 3}
    assert len(told["messages"]) == 123


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
