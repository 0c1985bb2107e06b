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
from clamsmtpd.journal import JournalHandler, goes_to_journal, takes_syslog
from clamsmtpd.log import MessageLine, SyslogHandler, message_line
from clamsmtpd.logjson import JsonFormatter
from clamsmtpd.metrics import CLEAN, Metrics
from clamsmtpd.throttle import Throttle
from clamsmtpd.values import Clean, Envelope, Infected, Oversize, Unscanned

TAG = Tag("100ABC").of_message(2)


def record(level: int, text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("clamsmtpd", level, "", 0, text, arguments, None)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(5)
        yield sock


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


def test_totals_are_numbers() -> None:
    metrics = Metrics()
    metrics.row(0)[CLEAN] = 7
    found = told(logging.INFO, "totals: %s", metrics)
    assert (found["event"], found["clean"], found["infected"]) == ("daemon.totals", 7, 0)
    assert "clean=7, infected=0" in found["text"]
    assert not {"time", "level", "event", "pid", "text"} & set(metrics.as_fields())


def test_the_account_of_a_message_is_all_fields_and_no_text() -> None:
    account = Account(TAG, "192.0.2.1")
    account.end(1.0, b"250 ok\r\n", taken=1)
    found = told(logging.INFO, "%s: message ended: %s", TAG, account)
    assert found["event"] == "message.ended"
    assert (found["outcome"], found["reply"], found["client"]) == ("delivered", "250 ok", "192.0.2.1")
    assert "text" not in found


def test_what_a_line_is_about_is_named_though_its_text_does_not() -> None:
    made = record(logging.WARNING, "message refused before its text: no scanner could judge it in time")
    made.tag = Tag("100ABC")
    found = json.loads(JsonFormatter(logging.Formatter("%(message)s")).format(made))
    assert (found["event"], found["connection"]) == ("message.turned_away", "100ABC")
    assert found["text"] == "message refused before its text: no scanner could judge it in time"


def test_a_reply_of_the_next_hop_is_a_field() -> None:
    found = told(logging.WARNING, "%s: next hop refused the message: %s", TAG, "554 5.6.0 not this")
    assert (found["event"], found["reply"], found["message"]) == ("next_hop.refused", "554 5.6.0 not this", "100ABC-2")


def test_what_is_in_no_table_is_other() -> None:
    found = told(logging.WARNING, "1,000 green bottles")
    assert (found["event"], found["text"]) == ("other", "1,000 green bottles")


@given(st.binary(max_size=600), st.text(max_size=3000))
def test_whatever_strangers_say_a_line_is_one_object(sender: bytes, reason: str) -> None:
    told(logging.INFO, "%s: %s", TAG, MessageLine(Envelope(sender, (sender,)), Clean()))
    told(logging.WARNING, "%s: %s", TAG, reason)
    told(logging.WARNING, "%s: %s: %s", TAG, reason, reason)


@pytest.mark.parametrize("octets", [b"a" * 510, b"\xff" * 510, b"\0" * 510, "\U0001f600".encode() * 100])
def test_the_longest_line_is_one_object_to_syslogd_too(receiver: socket.socket, octets: bytes) -> None:
    handler = SyslogHandler(receiver.getsockname())
    handler.setFormatter(JsonFormatter(logging.Formatter("%(message)s")))
    envelope = Envelope(octets, (octets,) * 30, octets, octets)
    account = Account(TAG, envelope=envelope, verdict=Unscanned("r" * 5000), reply=octets)
    for text, argument in (("%s: %s", MessageLine(envelope, Clean())), ("%s: message ended: %s", account)):
        handler.emit(record(logging.INFO, text, TAG, argument))
        front, _, line = receiver.recv(100_000).partition(b": ")
        assert front == b"<22>clamsmtpd[%d]" % os.getpid()
        found = json.loads(line)
        assert found["message"] == "100ABC-2"
        assert found["recipients_count"] == 30
    handler.close()


def test_what_the_log_has_to_say_itself_is_an_object_too(
    receiver: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = SyslogHandler("/nonexistent/log")
    handler.setFormatter(JsonFormatter(logging.Formatter("%(message)s")))
    monkeypatch.setattr("clamsmtpd.datagrams._RETRY_INTERVAL", 0.0)
    handler.emit(record(logging.INFO, "lost"))
    handler._path = receiver.getsockname()
    handler.emit(record(logging.INFO, "there"))
    handler.close()
    found = json.loads(receiver.recv(10_000).partition(b": ")[2])
    assert (found["event"], found["level"], found["count"]) == ("log.lost", "warning", 1)
    assert found["text"] == "1 log lines were lost, syslogd did not take them"


def test_a_count_of_what_was_left_out_is_a_number() -> None:
    logger = logging.getLogger("clamsmtpd.counted")
    throttle, lines = Throttle(lambda: 1.0), list[dict[str, Any]]()
    handler = logging.Handler()
    formatter = JsonFormatter(logging.Formatter("%(message)s"))
    handler.emit = lambda record: lines.append(json.loads(formatter.format(record)))  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.addFilter(throttle)
    for _ in range(1020):
        logger.warning("%s: next hop refused DATA: %s", TAG, "452 no")
    throttle.tell()
    logger.removeHandler(handler)
    assert len(lines) == 21
    assert (lines[-1]["event"], lines[-1]["count"], lines[-1]["level"]) == ("log.left_out", 1000, "warning")
    assert lines[-1]["text"] == "1,000 more like this in 0 s, the last one: 100ABC: next hop refused DATA: 452 no"


def test_a_traceback_is_on_the_same_line() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        made = logging.LogRecord("clamsmtpd", logging.DEBUG, "", 0, "traceback", (), sys.exc_info())
    line = JsonFormatter(logging.Formatter("%(message)s")).format(made)
    assert "\n" not in line
    assert "ZeroDivisionError" in json.loads(line)["text"]


# The journal


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


def test_journald_gets_the_account_of_a_message_that_has_ended(receiver: socket.socket) -> None:
    account = Account(TAG, "192.0.2.1", envelope=Envelope(b"a@example.org", (b"\xff" * 500,) * 12))
    account.end(1.0, b"250 2.0.0 Ok: queued as 4X\r\n", taken=1)
    found = journalled(receiver, record(logging.INFO, "%s: message ended: %s", TAG, account))
    assert found["MESSAGE"] == "100ABC: message ended: 100ABC-2 delivered, 250 2.0.0 Ok: queued as 4X"
    assert (found["CLAMSMTPD_EVENT"], found["CLAMSMTPD_OUTCOME"]) == ("message.ended", "delivered")
    # What is longer, journalctl -o json leaves out.
    assert len(found["CLAMSMTPD_ACCOUNT"]) < 4096
    assert json.loads(found["CLAMSMTPD_ACCOUNT"])["recipients_count"] == 12


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, "2"), (logging.ERROR, "3"), (logging.WARNING, "4"), (logging.INFO, "6"), (logging.DEBUG, "7")],
)
def test_levels_are_priorities(receiver: socket.socket, level: int, priority: str) -> None:
    assert journalled(receiver, record(level, "x"))["PRIORITY"] == priority


def test_a_value_with_line_ends_cannot_become_a_field(receiver: socket.socket) -> None:
    found = journalled(receiver, record(logging.WARNING, "%s: %s", TAG, "one\nCLAMSMTPD_EVENT=forged\nPRIORITY=0"))
    assert found["MESSAGE"] == "100ABC: one\nCLAMSMTPD_EVENT=forged\nPRIORITY=0"
    assert (found["CLAMSMTPD_EVENT"], found["PRIORITY"]) == ("other", "4")


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


def test_syslog_is_the_journal_where_the_way_to_it_leads_there(tmp_path: Path) -> None:
    link, target, sink = tmp_path / "log", tmp_path / "dev-log", tmp_path / "socket"
    assert not takes_syslog(str(link), str(target), str(sink))
    target.touch()
    link.symlink_to(target)
    assert not takes_syslog(str(link), str(target), str(sink)), "nothing takes fields there"
    sink.touch()
    assert takes_syslog(str(link), str(target), str(sink))
    link.unlink()
    link.touch()
    assert not takes_syslog(str(link), str(target), str(sink)), "that is another program's"
