"""clamsmtpctl doctor, beside the running daemon: all well, and each thing that can be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from clamsmtpd.ctl import examination
from clamsmtpd.ctl.main import cli
from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.postfix import Postfix
from tests.support.process import free_port
from tests.support.sink import Sink

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def clamd() -> Iterator[Clamd]:
    with Clamd() as running:
        yield running


@pytest.fixture
def hop() -> Iterator[Sink]:
    with Sink() as running:
        yield running


def doctor(configuration: Path, *arguments: str) -> Result:
    done = CliRunner().invoke(cli, ["-f", str(configuration), "doctor", *arguments])
    assert "Traceback" not in done.output
    return done


def steps(done: Result) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in json.loads(done.output)["steps"]}


@pytest.mark.parametrize(
    ("action", "words", "status"),
    [("drop", "it was dropped: 250 ", 0), ("bounce", "it was refused: 550 ", 0), ("pass", "it was delivered, as ", 0)],
)
def test_all_is_well_and_the_virus_is_dealt_with(
    clamd: Clamd, hop: Sink, tmp_path: Path, action: str, words: str, status: int
) -> None:
    with Daemon(
        f"OutAddress: {hop.address}", f"ClamAddress: {clamd.unix}", f"Action: {action}", f"Admin: {tmp_path}/admin"
    ) as running:
        done = doctor(running.configuration, "--to", "b@example.org")
        assert done.exit_code == status
        assert f"✓ clamd at {clamd.unix}: ClamAV " in done.output
        assert "✓ Admin at" in done.output
        assert "✓ a clean message to b@example.org: the next hop took it: 250 " in done.output
        assert words in done.output
        assert len(hop.messages) == (2 if action == "pass" else 1)
        assert b"EICAR" not in hop.messages[0]


def test_without_an_address_no_mail_is_sent_and_that_is_said(clamd: Clamd, hop: Sink) -> None:
    with Daemon(f"OutAddress: {hop.address}", f"ClamAddress: {clamd.unix}") as running:
        done = doctor(running.configuration, "--json")
        assert done.exit_code == 0
        assert steps(done)["mail"]["state"] == "skipped"
        assert hop.messages == []


def test_a_virus_that_is_delivered_is_a_failure(clamd: Clamd, hop: Sink, tmp_path: Path) -> None:
    # Somebody else listens where the daemon should: it greets as the daemon does, and lets all through.
    with Sink() as impostor:
        path = tmp_path / "conf"
        path.write_text(f"Listen: {impostor.address}\nOutAddress: {hop.address}\nClamAddress: {clamd.unix}\n")
        done = doctor(path)
        assert done.exit_code == 1
        assert "what greets there is another server" in done.output
        assert list(examination.try_mail(_settings(path), "a@example.org", "b@example.org"))[1].finding.startswith(
            "the virus was taken for clean and delivered: 250 "
        )


def _settings(path: Path) -> Any:
    from clamsmtpd.config import load  # noqa: PLC0415

    return load(str(path)).settings


def test_what_is_not_there_is_told_with_its_mend(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text(
        f"Listen: 127.0.0.1:{free_port()}\nOutAddress: 127.0.0.1:{free_port()}\nClamAddress: {tmp_path}/clamd\n"
        f"TempDirectory: {tmp_path}\n"
    )
    done = doctor(path, "--to", "b@example.org")
    assert done.exit_code == 3
    assert f"✗ clamd at {tmp_path}/clamd: No such file or directory\n    mend: is it running? systemctl" in done.output
    assert "Connection refused\n    mend: is it running, and does it listen there?" in done.output
    assert "mend: start it: systemctl start clamsmtpd" in done.output
    assert done.output.splitlines()[-1].endswith("steps failed: see the mends")


@pytest.mark.root
def test_a_socket_that_the_daemons_user_may_not_use_is_told_with_the_group(hop: Sink, tmp_path: Path) -> None:
    with Clamd() as own:
        os.chmod(own.unix.path, 0o660)
        path = tmp_path / "conf"
        path.write_text(f"OutAddress: {hop.address}\nClamAddress: {own.unix}\nUser: nobody\n")
        found = steps(doctor(path, "--json"))[f"clamd at {own.unix}"]
        assert (found["state"], found["finding"]) == ("failed", "Permission denied")
        assert "usermod -a -G " in found["mend"]


def test_a_scanner_that_finds_nothing_is_blind(hop: Sink, tmp_path: Path) -> None:
    with Clamd(blind=True, database={"other.ndb": "Other:0:*:6162636465666768696a6b6c6d6e6f\n"}) as blind:
        path = tmp_path / "conf"
        path.write_text(f"OutAddress: {hop.address}\nClamAddress: {blind.unix}\nTempDirectory: {tmp_path}\n")
        found = steps(doctor(path, "--json"))[f"clamd at {blind.unix}: samples"]
        assert found["state"] == "failed"
        assert "blind" in found["finding"]


@pytest.mark.root
def test_what_postfix_lets_us_do_is_told(clamd: Clamd, tmp_path: Path) -> None:
    with Postfix() as postfix:
        path = tmp_path / "conf"
        path.write_text(
            f"OutAddress: {postfix.address}\nClamAddress: {clamd.unix}\nXClient: on\nOutTLS: encrypt\n"
            f"TempDirectory: {tmp_path}\n"
        )
        found = steps(doctor(path, "--json"))
        name = f"next hop {postfix.address}"
        assert "PIPELINING" in found[name]["finding"]
        assert found[f"{name}: TLS"]["state"] == "failed"
        assert "STARTTLS" in found[f"{name}: TLS"]["finding"]
        assert f"{name}: XCLIENT" in found
