"""Settings that are read again: which come into force, and what is said of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from clamsmtpd.config import Settings, load
from clamsmtpd.renewal import Renewal
from clamsmtpd.tls import Certificate
from clamsmtpd.values import Action, Listen, StartError, TcpAddress
from tests.support.certificates import make_certificate

OUT = "OutAddress: 127.0.0.1:10026\n"


class Place:
    """A settings file, what is in force of it, and what has been used."""

    def __init__(self, folder: Path, text: str = "") -> None:
        self.file = folder / "conf"
        self.write(text)
        self.used: list[tuple[Settings, Certificate | None]] = []
        self.objection: StartError | None = None
        self.warnings: list[str] = []
        settings = load(str(self.file)).settings
        certificate = Certificate(settings.tls_certificate, settings.tls_key) if settings.tls_certificate else None
        self.renewal = Renewal(settings, certificate, lambda: load(str(self.file)), self._check)

    def write(self, text: str) -> None:
        self.file.write_text(OUT + text)

    def _check(self, _settings: Settings) -> list[str]:
        if self.objection is not None:
            raise self.objection
        return self.warnings

    def read(self, *, aloud: bool = True) -> bool:
        return self.renewal.read(lambda *new: self.used.append(new), aloud=aloud)


@pytest.fixture
def place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Place:
    caplog.set_level(logging.INFO, logger="clamsmtpd")
    return Place(tmp_path, "Action: drop\n")


def test_what_has_changed_is_told_by_name(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.write("Action: bounce\nTimeOut: 7\n")
    assert place.read()
    assert caplog.messages == ["settings read again: changed: Action, TimeOut"]
    assert place.renewal.settings.action is Action.BOUNCE
    assert place.used == [(place.renewal.settings, None)]
    assert place.read()
    assert caplog.messages[1:] == ["settings read again: nothing has changed"]


def test_bad_ones_change_nothing_and_are_one_line(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    before = place.renewal.settings
    place.write("Action: bounce\nTimeOut: soon\n")
    assert not place.read()
    line = f'{place.file}:3: TimeOut: "soon" is no whole number; give one from 1 to 2147483647'
    assert caplog.messages == [f"{line}; the settings from before are still used"]
    assert place.renewal.settings is before
    assert place.used == []


def test_what_cannot_be_used_here_is_bad_as_well(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    before = place.renewal.settings
    place.write("Action: bounce\n")
    place.objection = StartError("TempDirectory: cannot\nwrite")
    assert not place.read()
    assert caplog.messages == ["TempDirectory: cannot\\x0Awrite; the settings from before are still used"]
    assert place.renewal.settings is before


def test_whoever_uses_them_may_refuse(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    before = place.renewal.settings
    place.write("Action: bounce\n")

    def use(*_new: object) -> None:
        raise StartError("OutTLS: verify: no authorities")

    assert not place.renewal.read(use, aloud=True)
    assert caplog.messages == ["OutTLS: verify: no authorities; the settings from before are still used"]
    assert place.renewal.settings is before


def test_what_needs_a_restart_stays_and_is_told_each_time(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.write("Action: bounce\nListen: 1\nMaxConnections: 2\nPidFile: /p\nUser: u\nWorkers: 3\n")
    for first in ("settings read again: changed: Action", "settings read again: nothing has changed"):
        caplog.clear()
        assert place.read()
        assert caplog.messages == [
            first,
            "changed, but only a restart can bring it into force: Listen, MaxConnections, PidFile, User, Workers",
        ]
    found = place.renewal.settings
    assert found.listen == (Listen(TcpAddress(None, 10025)),)
    assert (found.listen_given, found.max_connections, found.workers) == (False, 64, None)


def test_warnings_are_told_as_at_the_start(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.write("Bounce: on\n")
    place.warnings = ["mind the gap"]
    assert place.read()
    assert caplog.messages[:2] == [f"{place.file}:2: Bounce is an old name; write Action: bounce", "mind the gap"]


def test_a_worker_says_nothing_of_good_ones(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.write("Bounce: on\nListen: 1\n")
    place.warnings = ["mind the gap"]
    assert place.read(aloud=False)
    assert caplog.messages == []
    assert place.renewal.settings.action is Action.BOUNCE


def test_a_certificate_stays_as_long_as_its_paths_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = make_certificate(tmp_path)
    lines = f"TLSCertificate: {made.certificate}\nTLSKey: {made.key}\n"
    place = Place(tmp_path, lines)
    before = place.renewal.certificate
    # Nobody but root could read it again.
    made.key.rename(tmp_path / "hidden")
    place.write(f"Action: bounce\n{lines}")
    assert place.read()
    assert place.renewal.certificate is before is not None
    place.write(f"TLSCertificate: {made.certificate}\nTLSKey: {tmp_path}/nowhere\n")
    assert not place.read()
    assert "nowhere: No such file or directory" in caplog.text
    assert place.renewal.certificate is before
    place.write(f"TLSCertificate: {made.certificate}\nTLSKey: {tmp_path}/hidden\n")
    assert place.read()
    assert place.renewal.certificate not in (before, None)
    place.write("")
    assert place.read()
    assert place.renewal.certificate is None
