"""The log of the running daemon, for programs and for the journal."""

from __future__ import annotations

import json
import signal
import smtplib
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clamsmtpd.ctl.main import cli
from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.journald import Journald, why_not
from tests.support.sink import Sink

pytestmark = pytest.mark.integration


def send_two(running: Daemon) -> None:
    with smtplib.SMTP(running.host, running.port, timeout=30) as client:
        client.sendmail("a@example.org", ["b@example.org", "c@example.org"], b"Subject: x\r\n\r\nclean\r\n")
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n" + EICAR + b"\r\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_each_line_is_an_object_and_an_id_joins_those_of_a_message(clamd: Clamd, sink: Sink, workers: int) -> None:
    settings = [f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "LogFormat: json", "Quarantine: on"]
    with Daemon(*settings, "VirusAction: exit 3", f"Workers: {workers}") as running:
        send_two(running)
        running.wait_for_log("hook.ended")
        running.send(signal.SIGTERM)
        assert running.wait() == 0
        events: list[dict[str, Any]] = [json.loads(line) for line in running.log().splitlines()]
    names = {event["event"] for event in events}
    assert {"daemon.started", "connection.accepted", "scanner.up", "daemon.stopping", "daemon.stopped"} <= names
    assert "other" not in names
    (accepted,) = [event for event in events if event["event"] == "connection.accepted"]
    connection = accepted["connection"]
    first, second = (
        [event for event in events if event.get("message") == f"{connection}-{number}"] for number in (1, 2)
    )
    assert {"message.judged", "message.ended"} <= {event["event"] for event in first}
    assert {"message.judged", "message.ended", "virus.quarantined", "hook.ended"} <= {
        event["event"] for event in second
    }
    (judged,) = [event for event in second if event["event"] == "message.judged"]
    assert (judged["status"], judged["virus"], judged["sender"]) == ("infected", EICAR_NAME, "a@example.org")
    assert judged["text"] == f"{connection}: from=a@example.org, to=b@example.org, status=VIRUS:{EICAR_NAME}"
    (ended,) = [event for event in first if event["event"] == "message.ended"]
    assert (ended["outcome"], ended["scanner"], ended["recipients_count"]) == ("delivered", str(clamd.unix), 2)


def test_explain_finds_a_message_in_that_log(clamd: Clamd, sink: Sink, tmp_path: Path) -> None:
    with Daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "LogFormat: json", level=3) as running:
        send_two(running)
        running.wait_for_log('"outcome": "dropped"')
        log = tmp_path / "log"
        log.write_text(running.log())
    ended = next(json.loads(line) for line in log.read_text().splitlines() if '"dropped"' in line)
    done = CliRunner().invoke(cli, ["explain", ended["message"], "--log", str(log)])
    assert done.exit_code == 0
    assert f"verdict: infected, {EICAR_NAME}, by clamd at {clamd.unix}" in done.output


def test_the_text_log_has_no_account_of_messages(clamd: Clamd, sink: Sink) -> None:
    with Daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}") as running:
        send_two(running)
        running.wait_for_log("status=VIRUS")
        running.send(signal.SIGTERM)
        assert running.wait() == 0
        assert "message ended" not in running.log()


# What the service manager would set for it: that its standard error is the journal's stream.
START = (
    "import os, sys; status = os.fstat(2); "
    "os.environ['JOURNAL_STREAM'] = f'{status.st_dev}:{status.st_ino}'; os.execv(sys.argv[1], sys.argv[1:])"
)

# Below the level at which its start would be waited for in what it writes, as it writes nothing; it logs all the same.
INFO = {"log._LEVELS": (50, 20, 20, 20, 10)}


def test_under_systemd_the_log_goes_to_the_journal_with_fields(clamd: Clamd, sink: Sink, tmp_path: Path) -> None:
    place = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(place))
        journal.settimeout(20)
        with Daemon(
            f"OutAddress: {sink.address}",
            f"ClamAddress: {clamd.unix}",
            level=2,
            wrapper=[sys.executable, "-c", START],
            constants={"journal.SOCKET": str(place), **INFO},
        ) as running:
            send_two(running)
            found = b""
            while b"status=VIRUS" not in found:
                found = journal.recv(100_000)
            assert b"CLAMSMTPD_EVENT=message.judged\n" in found
            assert f"CLAMSMTPD_VIRUS={EICAR_NAME}\n".encode() in found
            assert b"SYSLOG_IDENTIFIER=clamsmtpd\n" in found
            assert running.log() == ""


@pytest.mark.root
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_debians_journald_takes_the_fields_and_explain_tells_the_story_from_it(clamd: Clamd, sink: Sink) -> None:
    settings = [f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Workers: 2"]
    wrapped = [sys.executable, "-c", START]
    with (
        Journald() as journald,
        Daemon(*settings, level=2, wrapper=[*journald.wrapper, *wrapped], constants=INFO) as running,
    ):
        send_two(running)
        first, second = journald.wait_for("message.ended", number=2)
        assert first["_TRANSPORT"] == "journal"
        assert (first["SYSLOG_FACILITY"], first["PRIORITY"]) == ("2", "6")
        assert first["CLAMSMTPD_CONNECTION"] == second["CLAMSMTPD_CONNECTION"]
        assert (second["CLAMSMTPD_VIRUS"], second["CLAMSMTPD_OUTCOME"]) == (EICAR_NAME, "dropped")
        judged = journald.wait_for("message.judged", number=2)
        assert [entry["CLAMSMTPD_STATUS"] for entry in judged] == ["clean", "infected"]
        assert judged[1]["MESSAGE"].endswith(f"status=VIRUS:{EICAR_NAME}")
        assert [entry["CLAMSMTPD_MESSAGE"] for entry in judged] == [
            entry["CLAMSMTPD_MESSAGE"] for entry in (first, second)
        ]
        assert {entry["_PID"] for entry in judged} == {entry["SYSLOG_PID"] for entry in judged}
        printed = journald.journalctl("-o", "json")
        assert running.log() == ""
    done = CliRunner().invoke(cli, ["explain", second["CLAMSMTPD_MESSAGE"], "--log", "-"], input=printed)
    assert done.exit_code == 0, done.output
    assert f"verdict: infected, {EICAR_NAME}, by clamd at {clamd.unix}" in done.output
    done = CliRunner().invoke(cli, ["explain", "recorded", "--log", "-", "--json"], input=printed)
    assert [account["outcome"] for account in json.loads(done.output)["messages"]] == ["delivered"]
