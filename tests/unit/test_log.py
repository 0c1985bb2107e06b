from __future__ import annotations

import io
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd import log, supervisor
from clamsmtpd.journal import JournalHandler
from clamsmtpd.log import (
    SyslogHandler,
    configure,
    describe,
    escape,
    escape_field,
    finish,
    message_line,
    wants_accounts,
)
from clamsmtpd.values import Clean, Envelope, Infected, LogFormat, Oversize, Unscanned, Verdict

logger = logging.getLogger("clamsmtpd")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    names = ("logThreads", "logProcesses", "logMultiprocessing", "raiseExceptions", "_srcfile")
    before = {name: getattr(logging, name) for name in names}
    level, propagate = logger.level, logger.propagate
    accounts = log._wants_accounts
    yield
    log._wants_accounts = accounts
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.filters.clear()
    logger.setLevel(level)
    logger.propagate = propagate
    for name, value in before.items():
        setattr(logging, name, value)


# What strangers sent, shown


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", ""),
        (b"a b,c", "a b,c"),
        (b"a\r\nb\x00\x7f\x1b[1m", r"a\x0D\x0Ab\x00\x7F\x1B[1m"),
        (b"back\\slash", r"back\x5Cslash"),
        (b"\xc3\xa9", r"\xC3\xA9"),
        ("é", r"\xC3\xA9"),
        ("\udcff", r"\xFF"),
        ("tab\t", r"tab\x09"),
        ("\u2028", r"\xE2\x80\xA8"),
    ],
)
def test_only_printable_ascii_is_shown_as_it_is(data: str | bytes, shown: str) -> None:
    assert escape(data) == shown


def _unescape(text: str) -> bytes:
    return re.sub(rb"\\x([0-9A-F]{2})", lambda found: bytes([int(found.group(1), 16)]), text.encode("ascii"))


@given(st.binary())
def test_what_is_shown_is_one_line_and_loses_nothing(data: bytes) -> None:
    for shown in (escape(data), escape_field(data)):
        assert shown.isprintable()
        assert _unescape(shown) == data


@given(st.text())
def test_text_is_shown_as_its_octets_are(text: str) -> None:
    assert escape(text) == escape(text.encode())
    assert escape_field(text) == escape_field(text.encode())


@given(st.binary())
def test_a_field_holds_neither_blank_nor_comma(data: bytes) -> None:
    assert not set(escape_field(data)) & set(" ,")


# The line about a message


@pytest.mark.parametrize(
    ("envelope", "verdict", "line"),
    [
        (Envelope(b"a@b", (b"c@d",)), Clean(), "from=a@b, to=c@d, status=CLEAN"),
        (Envelope(b"a@b", (b"c@d", b"e@f")), Clean(), "from=a@b, to=c@d, to=e@f, status=CLEAN"),
        (Envelope(b"", (b"c@d",)), Infected("Eicar-Test"), "from=<>, to=c@d, status=VIRUS:Eicar-Test"),
        (Envelope(b"a@b"), Unscanned("no clamd"), "from=a@b, status=CLAMAV-ERROR"),
        (Envelope(b"a@b"), Oversize("too much"), "from=a@b, status=OVERSIZE"),
    ],
)
def test_message_line(envelope: Envelope, verdict: Verdict, line: str) -> None:
    assert message_line(envelope, verdict) == line


def test_a_message_that_passes_unscanned_can_be_counted() -> None:
    envelope = Envelope(b"a@b", (b"c@d",))
    passed = [
        message_line(envelope, Oversize("too much"), passed=True),
        message_line(envelope, Unscanned("no clamd"), passed=True),
    ]
    assert passed == [
        "from=a@b, to=c@d, passed=UNSCANNED, status=OVERSIZE",
        "from=a@b, to=c@d, passed=UNSCANNED, status=CLAMAV-ERROR",
    ]


def test_an_address_cannot_forge_a_field() -> None:
    envelope = Envelope(b'"a, status=CLEAN"@x', (b'"b, to=c@d"@x', b"x\r\nfrom=a"))
    line = message_line(envelope, Infected("X, status=CLEAN"))
    assert line == (
        r'from="a\x2C\x20status=CLEAN"@x, to="b\x2C\x20to=c@d"@x, to=x\x0D\x0Afrom=a, '
        r"status=VIRUS:X\x2C\x20status=CLEAN"
    )


def test_the_recipients_that_one_line_cannot_hold_are_counted() -> None:
    recipients = tuple(b"%04d@example.com" % number for number in range(1000))
    fields = message_line(Envelope(b"a@b", recipients), Clean()).split(", ")
    shown = [field for field in fields if "@example.com" in field]
    assert shown == [f"to={recipient.decode()}" for recipient in recipients[: len(shown)]]
    assert fields[-2:] == [f"to=(and {1000 - len(shown)} more)", "status=CLEAN"]
    assert len(shown) > 300


@given(st.binary(max_size=2048), st.lists(st.binary(max_size=2048), max_size=30).map(tuple))
def test_the_status_is_never_what_syslogd_cuts_off(sender: bytes, recipients: tuple[bytes, ...]) -> None:
    line = message_line(Envelope(sender, recipients), Clean())
    assert len(line) < 7800
    assert line.startswith("from=")
    assert line.endswith(", status=CLEAN")


def test_a_very_long_address_is_cut() -> None:
    line = message_line(Envelope(b"a" * 2000, (b"\xff" * 2000,)), Clean())
    assert line == f"from={'a' * 500} ..., to={(chr(92) + 'xFF') * 125} ..., status=CLEAN"


# Standard error


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (0, ["critical"]),
        (1, ["critical", "error"]),
        (2, ["critical", "error", "warning"]),
        (3, ["critical", "error", "warning", "info"]),
        (4, ["critical", "error", "warning", "info", "debug"]),
    ],
)
def test_levels_on_standard_error(level: int, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    configure(level)
    for name in ("critical", "error", "warning", "info", "debug"):
        logger.log(getattr(logging, name.upper()), "%s", name)
    assert capsys.readouterr().err.splitlines() == [f"clamsmtpd: {name}" for name in shown]


def test_a_record_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(4)
    logger.info("one\ntwo")
    assert capsys.readouterr().err == "clamsmtpd: one two\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\r\x1b[2Jcleared\x07", r"\x0D\x1B[2Jcleared\x07"),
        ("8-bit \x9b1m", r"8-bit \xC2\x9B1m"),
        ("\u202egnp.exe\u2066", r"\xE2\x80\xAEgnp.exe\xE2\x81\xA6"),
        ("line\u2028paragraph\u2029\x85end", r"line\xE2\x80\xA8paragraph\xE2\x80\xA9\xC2\x85end"),
        ("\udc9b\udcff", r"\x9B\xFF"),
        ("%n %s café", "%n %s café"),
    ],
)
def test_what_nobody_has_escaped_does_not_play_with_the_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(4)
    logger.error("internal error: %s", ValueError(text))
    logger.error(text)
    assert capsys.readouterr().err.splitlines() == [f"clamsmtpd: internal error: {shown}", f"clamsmtpd: {shown}"]


def test_nor_does_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure(4)
    logger.debug("traceback", exc_info=ValueError("\x1b[1m"))
    assert capsys.readouterr().err == "clamsmtpd: traceback\nValueError: \\x1B[1m\n"


@pytest.mark.parametrize(("level", "lines"), [(3, 21), (4, 1000)])
def test_a_flood_of_warnings_is_bounded_but_in_the_debug_log(
    level: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(level)
    for number in range(1000):
        logger.warning("%06X: no verdict: %s", number, "why")
    finish()
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == lines
    if level == 3:
        assert shown[-1] == "clamsmtpd: 980 more like this in 0 s, the last one: 0003E7: no verdict: why"


def test_no_line_about_a_worker_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    # Nor could the next worker tell, as what it knows from its parent, what was.
    configure(1)
    for number in range(100):
        supervisor._log.error("worker %d (process %d) has not moved for %g s", number, 1000 + number, 60)
    finish()
    assert len(capsys.readouterr().err.splitlines()) == 100


def test_a_traceback_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure(4)
    logger.debug("traceback", exc_info=ValueError("wrong"))
    assert capsys.readouterr().err == "clamsmtpd: traceback\nValueError: wrong\n"


def test_a_log_that_cannot_be_written_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    configure(4)
    logger.info("lost")


def test_configured_again_it_logs_to_one_place_only(capsys: pytest.CaptureFixture[str]) -> None:
    configure(4)
    configure(3)
    logger.info("once")
    logger.debug("never")
    assert capsys.readouterr().err == "clamsmtpd: once\n"


def test_syslog_gets_info_but_no_debug() -> None:
    configure(None)
    (handler,) = logger.handlers
    assert isinstance(handler, SyslogHandler)
    assert logger.isEnabledFor(logging.INFO)
    assert not logger.isEnabledFor(logging.DEBUG)


def test_in_the_background_the_log_goes_to_the_journal_if_that_has_syslogs_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clamsmtpd.log.takes_syslog", lambda: True)
    configure(None)
    assert isinstance(logger.handlers[0], JournalHandler)
    assert wants_accounts()
    monkeypatch.setattr("clamsmtpd.log.takes_syslog", lambda: False)
    configure(None)
    assert isinstance(logger.handlers[0], SyslogHandler)
    assert not wants_accounts()
    configure(3, LogFormat.JSON)
    assert wants_accounts()


# syslogd


class Syslogd:
    """The end that reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def received(self) -> list[bytes]:
        lines = []
        while True:
            try:
                lines.append(self._socket.recv(65536))
            except BlockingIOError:
                return lines

    def texts(self) -> list[bytes]:
        return [line.partition(b": ")[2] for line in self.received()]

    def stop(self) -> None:
        self._socket.close()
        self._path.unlink()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def handler(path: Path) -> Iterator[SyslogHandler]:
    handler = SyslogHandler(str(path))
    yield handler
    handler.close()


def _log(handler: SyslogHandler, text: str, level: int = logging.INFO) -> None:
    handler.handle(logging.LogRecord("clamsmtpd", level, "", 0, "%s", (text,), None))


def test_lines_go_to_facility_mail_with_their_severity(path: Path, handler: SyslogHandler) -> None:
    syslogd = Syslogd(path)
    for level in (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
        _log(handler, "text", level)
    # RFC 3164, section 4.1.1: facility 2 times 8, and the severity.
    assert syslogd.received() == [b"<%d>clamsmtpd[%d]: text" % (16 + n, os.getpid()) for n in (3, 3, 4, 6, 7)]
    syslogd.stop()


def test_a_syslogd_that_has_stopped_reading_is_not_waited_for(path: Path, handler: SyslogHandler) -> None:
    syslogd = Syslogd(path)
    for number in range(10_000):
        _log(handler, str(number))
    queued = len(taken := syslogd.texts())
    assert 0 < queued < 10_000
    assert taken == [b"%d" % number for number in range(queued)]
    _log(handler, "again")
    _log(handler, "and again")
    assert syslogd.texts() == [
        b"%d log lines were lost, syslogd did not take them" % (10_000 - queued),
        b"again",
        b"and again",
    ]
    syslogd.stop()


def test_a_syslogd_that_was_started_again_misses_nothing(path: Path, handler: SyslogHandler) -> None:
    syslogd = Syslogd(path)
    _log(handler, "one")
    syslogd.stop()
    syslogd = Syslogd(path)
    _log(handler, "two")
    assert syslogd.texts() == [b"two"]
    syslogd.stop()


def test_a_syslogd_that_starts_later_is_told_what_it_missed(
    path: Path, handler: SyslogHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("clamsmtpd.datagrams.time.monotonic", lambda: now)
    _log(handler, "one")
    syslogd = Syslogd(path)
    now += 0.9
    _log(handler, "two")
    assert syslogd.received() == []
    now += 0.2
    _log(handler, "three")
    assert syslogd.texts() == [b"2 log lines were lost, syslogd did not take them", b"three"]
    syslogd.stop()


def test_without_a_syslogd_hardly_a_system_call_is_made(
    handler: SyslogHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = socket.socket

    def count(*arguments: int) -> socket.socket:
        opened.append(arguments)
        return real(*arguments)

    monkeypatch.setattr("clamsmtpd.datagrams.socket.socket", count)
    monkeypatch.setattr("clamsmtpd.datagrams.time.monotonic", lambda: 1000.0)
    for _ in range(100):
        _log(handler, "text")
    assert len(opened) == 1


def test_a_full_queue_at_the_first_line_keeps_the_connection(path: Path, handler: SyslogHandler) -> None:
    syslogd = Syslogd(path)
    other = SyslogHandler(str(path))
    for _ in range(10_000):
        _log(other, "x")
    _log(handler, "one")
    syslogd.received()
    _log(handler, "two")
    assert syslogd.texts() == [b"1 log lines were lost, syslogd did not take them", b"two"]
    other.close()
    syslogd.stop()


def test_a_very_long_line_is_cut(path: Path, handler: SyslogHandler) -> None:
    syslogd = Syslogd(path)
    _log(handler, "x" * 300_000)
    (line,) = syslogd.received()
    assert len(line) == 8000
    syslogd.stop()


def test_a_line_with_stray_surrogates_is_sent(path: Path, handler: SyslogHandler) -> None:
    syslogd = Syslogd(path)
    _log(handler, "é\udcff")
    assert syslogd.texts() == [b"\xc3\xa9\\udcff"]
    syslogd.stop()


def test_an_error_is_described_in_the_systems_words() -> None:
    assert describe(OSError(28, "No space left on device", "/spool")) == "No space left on device"
    assert describe(ValueError("bad name")) == "bad name"
    assert describe(ValueError()) == "ValueError"


def test_a_line_that_cannot_be_made_costs_nobody_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = SyslogHandler(str(tmp_path / "log"))
    handler.handle(logging.LogRecord("clamsmtpd", logging.INFO, "", 0, "%d", ("no number",), None))
    handler.close()
