"""The log for programs, and for the journal."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd import journal
from clamsmtpd.account import Account, Tag
from clamsmtpd.journal import JournalHandler, goes_to_journal
from clamsmtpd.log import MessageLine, message_line
from clamsmtpd.logjson import JsonFormatter
from clamsmtpd.values import Clean, Envelope, Infected, Oversize, Unscanned

TAG = Tag("100ABC").of_message(2)


def record(level: int, text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("clamsmtpd", level, "", 0, text, arguments, None)


def told(level: int, text: str, *arguments: object) -> dict[str, Any]:
    line = JsonFormatter(logging.Formatter("%(message)s")).format(record(level, text, *arguments))
    assert line.isascii()
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line_is_an_object_with_names_that_stay() -> None:
    found = told(logging.INFO, "%s: accepted connection from: %s", Tag("100ABC"), "192.0.2.1")
    assert found["time"].endswith("+00:00")
    del found["time"]
    assert found == {
        "level": "info",
        "event": "connection.accepted",
        "pid": os.getpid(),
        "connection": "100ABC",
        "client": "192.0.2.1",
        "text": "100ABC: accepted connection from: 192.0.2.1",
    }


def test_a_line_about_a_message_has_its_id() -> None:
    found = told(logging.INFO, "%s: quarantined virus file as: %s", TAG, "/spool/virus.AbCdEf")
    assert (found["connection"], found["message"], found["file"]) == ("100ABC", "100ABC-2", "/spool/virus.AbCdEf")


@pytest.mark.parametrize(
    ("verdict", "status", "virus"),
    [
        (Clean(), "clean", ""),
        (Infected("Eicar"), "infected", "Eicar"),
        (Unscanned("x"), "unscanned", ""),
        (Oversize("x"), "oversize", ""),
    ],
)
def test_the_line_of_a_message_has_its_parts_as_fields(verdict: Any, status: str, virus: str) -> None:
    envelope = Envelope(b"a@example.org", tuple(b"r%d" % number for number in range(20)))
    line = MessageLine(envelope, verdict, passed=True)
    assert str(line) == message_line(envelope, verdict, passed=True)
    found = told(logging.INFO, "%s: %s", TAG, line)
    assert found["event"] == "message.judged"
    assert (found["sender"], found["status"], found["virus"], found["passed"]) == ("a@example.org", status, virus, True)
    assert found["recipients"] == [f"r{number}" for number in range(10)]
    assert found["recipients_count"] == 20
    assert found["text"] == f"100ABC: {line}"


def test_numbers_stay_numbers() -> None:
    found = told(logging.WARNING, "%g s after the stop not all had ended; connections cut: %d", 75.0, 3)
    assert (found["limit"], found["connections"]) == (75.0, 3)


def test_the_account_of_a_message_is_all_fields_and_no_text() -> None:
    account = Account(TAG, "192.0.2.1")
    account.end(1.0, b"250 ok\r\n", taken=1)
    found = told(logging.INFO, "%s: message ended: %s", TAG, account)
    assert found["event"] == "message.ended"
    assert (found["outcome"], found["reply"], found["client"]) == ("delivered", "250 ok", "192.0.2.1")
    assert "text" not in found


def test_what_is_in_no_table_is_other() -> None:
    found = told(logging.WARNING, "1,000 more like this")
    assert (found["event"], found["text"]) == ("other", "1,000 more like this")


@given(st.binary(max_size=600), st.text(max_size=3000))
def test_whatever_strangers_say_a_line_is_one_object(sender: bytes, reason: str) -> None:
    told(logging.INFO, "%s: %s", TAG, MessageLine(Envelope(sender, (sender,)), Clean()))
    told(logging.WARNING, "%s: %s", TAG, reason)
    told(logging.WARNING, "%s: %s: %s", TAG, reason, reason)


def test_a_traceback_is_on_the_same_line() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        made = logging.LogRecord("clamsmtpd", logging.DEBUG, "", 0, "traceback", (), sys.exc_info())
    line = JsonFormatter(logging.Formatter("%(message)s")).format(made)
    assert "\n" not in line
    assert "ZeroDivisionError" in json.loads(line)["text"]


# The journal


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(5)
        yield sock


def parse(data: bytes) -> dict[str, str]:
    """Read a datagram as journald does."""
    fields: dict[str, str] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, data = rest[8 : 8 + length], rest[9 + length :]
            assert rest[8 + length : 9 + length] == b"\n"
        else:
            data = rest
        fields[name.decode()] = value.decode()
    return fields


def journalled(receiver: socket.socket, made: logging.LogRecord) -> dict[str, str]:
    handler = JournalHandler(receiver.getsockname())
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.emit(made)
    handler.close()
    return parse(receiver.recv(100_000))


def test_journald_gets_the_fields_of_the_event(receiver: socket.socket) -> None:
    line = MessageLine(Envelope(b"a@example.org", (b"b@example.org",)), Infected("Eicar"))
    assert journalled(receiver, record(logging.INFO, "%s: %s", TAG, line)) == {
        "MESSAGE": "100ABC: from=a@example.org, to=b@example.org, status=VIRUS:Eicar",
        "PRIORITY": "6",
        "SYSLOG_FACILITY": "2",
        "SYSLOG_IDENTIFIER": "clamsmtpd",
        "SYSLOG_PID": str(os.getpid()),
        "CLAMSMTPD_EVENT": "message.judged",
        "CLAMSMTPD_CONNECTION": "100ABC",
        "CLAMSMTPD_MESSAGE": "100ABC-2",
        "CLAMSMTPD_SENDER": "a@example.org",
        "CLAMSMTPD_STATUS": "infected",
        "CLAMSMTPD_VIRUS": "Eicar",
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, "2"), (logging.ERROR, "3"), (logging.WARNING, "4"), (logging.INFO, "6"), (logging.DEBUG, "7")],
)
def test_levels_are_priorities(receiver: socket.socket, level: int, priority: str) -> None:
    assert journalled(receiver, record(level, "x"))["PRIORITY"] == priority


def test_a_value_with_line_ends_cannot_become_a_field(receiver: socket.socket) -> None:
    found = journalled(receiver, record(logging.WARNING, "%s: %s", TAG, "one\nCLAMSMTPD_EVENT=forged\nPRIORITY=0"))
    assert found["MESSAGE"] == "100ABC: one\nCLAMSMTPD_EVENT=forged\nPRIORITY=0"
    assert (found["CLAMSMTPD_EVENT"], found["PRIORITY"]) == ("connection.trouble", "4")


def test_a_journal_that_is_not_there_loses_lines_and_says_so_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = JournalHandler(str(tmp_path / "journal"))
    handler.setFormatter(logging.Formatter("%(message)s"))
    monkeypatch.setattr("clamsmtpd.datagrams._RETRY_INTERVAL", 0.0)
    handler.emit(record(logging.INFO, "lost"))
    handler.emit(record(logging.INFO, "lost too"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(5)
        handler.emit(record(logging.INFO, "there"))
        assert parse(sock.recv(10_000))["MESSAGE"] == "2 log lines were lost, journald did not take them"
        assert parse(sock.recv(10_000))["MESSAGE"] == "there"
    handler.close()


def test_a_long_line_is_cut(receiver: socket.socket) -> None:
    assert len(journalled(receiver, record(logging.INFO, "x" * 100_000))["MESSAGE"]) == journal._VALUE_MAX


def test_the_journal_is_known_by_the_descriptor_that_leads_there(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        right = f"{status.st_dev}:{status.st_ino}"
        assert goes_to_journal({"JOURNAL_STREAM": right}, stream.fileno())
        for wrong in ("", "1:2", f"{status.st_dev}:0", "x:y", right + ":1"):
            assert not goes_to_journal({"JOURNAL_STREAM": wrong}, stream.fileno())
        assert not goes_to_journal({}, stream.fileno())
        assert not goes_to_journal({"JOURNAL_STREAM": right}, 9999)


@pytest.mark.parametrize("octet", [b"a", b"\xff", b"\0"])
def test_what_strangers_say_never_makes_an_object_too_long_to_be_read(octet: bytes) -> None:
    envelope = Envelope(1000 * octet, (1000 * octet,) * 20, 1000 * octet, 1000 * octet)
    account = Account(TAG, envelope=envelope, reply=1000 * octet)
    for arguments in (("%s: %s", TAG, MessageLine(envelope, Clean())), ("%s: message ended: %s", TAG, account)):
        line = JsonFormatter(logging.Formatter("%(message)s")).format(record(logging.INFO, *arguments))
        # With what stands in front of it, syslogd takes 8000.
        assert len(line) <= 7900
        assert json.loads(line)["message"] == "100ABC-2"
