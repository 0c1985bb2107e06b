"""The command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from clamsmtpd import __version__, cli, daemon
from clamsmtpd.config import Loaded, Settings
from clamsmtpd.values import Action, Listen, NextHop, TcpAddress


@pytest.fixture(autouse=True)
def mask() -> Iterator[set[signal.Signals]]:
    """Give the signals that were blocked before, and block no others afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield {signal.Signals(number) for number in before}
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Started:
    """What the daemon was started with."""

    settings: Settings
    level: int | None
    warnings: Sequence[str]
    load: Callable[[], Loaded]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    seen = Started()

    def run(
        settings: Settings, *, foreground_level: int | None, warnings: Sequence[str], load: Callable[[], Loaded]
    ) -> int:
        seen.settings, seen.level, seen.warnings, seen.load = settings, foreground_level, warnings, load
        return 0

    monkeypatch.setattr(daemon, "run", run)
    return seen


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "conf"
    path.write_text("OutAddress: 127.0.0.1:10026\nPidFile: /from/file\n")
    return str(path)


def test_v_prints_the_version_and_the_default_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-v"]) == 0
    assert capsys.readouterr().out.split() == [
        "clamsmtpd",
        "(version",
        f"{__version__})",
        "(config:",
        "/etc/clamsmtpd.conf)",
    ]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: clamsmtpd ")


def test_without_d_it_becomes_a_daemon(started: Started, config: str) -> None:
    assert cli.main(["-f", config]) == 0
    assert started.level is None
    assert started.settings.pid_file == "/from/file"


@pytest.mark.parametrize("level", ["0", "1", "2", "3", "4"])
def test_d_stays_in_the_foreground(started: Started, config: str, level: str) -> None:
    assert cli.main(["-d", level, "-f", config, "-p", "/from/flag"]) == 0
    assert started.level == int(level)
    assert started.settings.pid_file == "/from/flag"
    assert started.warnings == ()


def test_old_flags_are_taken_with_a_warning_each(started: Started, config: str) -> None:
    arguments = [
        "-b",
        "-c",
        "192.0.2.1",
        "-D",
        "/spool",
        "-h",
        "X-A:b",
        "-l",
        "10030",
        "-m",
        "5",
        "-q",
        "-t",
        "6",
        "-X",
        "192.0.2.9:26",
    ]
    assert cli.main([*arguments, "-f", config]) == 0
    settings = started.settings
    assert settings.action is Action.BOUNCE
    assert settings.clam_addresses == (TcpAddress("192.0.2.1", 3310),)
    assert settings.temp_directory == "/spool"
    assert settings.header == "X-A:b"
    assert settings.listen == (Listen(TcpAddress(None, 10030)),)
    assert (settings.max_connections, settings.time_out) == (5, 6)
    assert settings.quarantine
    assert settings.debug_files
    assert settings.out_address == NextHop(TcpAddress("192.0.2.9", 26))
    assert len(started.warnings) == 10
    for name in ("Action: bounce", "ClamAddress: 192.0.2.1", "Quarantine: on", "OutAddress: 192.0.2.9:26"):
        assert any(f"write {name} in " in warning for warning in started.warnings), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-Z"], "clamsmtpd: option -Z not recognized"),
        (["-d"], "clamsmtpd: option -d requires argument"),
        (["-d", "5"], 'clamsmtpd: -d: "5" is no level; give a number from 0 to 4'),
        (["-d", "x"], 'clamsmtpd: -d: "x" is no level; give a number from 0 to 4'),
        (["25", "26"], 'clamsmtpd: one argument at most, the next hop\'s address; "26" is too many'),
    ],
)
def test_bad_usage_is_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == message
    assert lines[1].startswith("usage: ")


def test_a_bad_configuration_is_status_2_and_one_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["-f", config + ".gone"], ["-f", config, "-m", "none"]):
        assert cli.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("clamsmtpd: ")


def test_without_any_file_an_argument_is_enough(
    started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "DEFAULT_PATH", str(tmp_path / "none"))
    assert cli.main(["127.0.0.1:26"]) == 0
    assert started.settings.out_address == NextHop(TcpAddress("127.0.0.1", 26))
    assert any("is missing; only the flags count" in warning for warning in started.warnings)


def test_an_interrupt_of_the_start_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(daemon, "run", run)
    assert cli.main(["-d", "4", "-f", config]) == 1
    assert capsys.readouterr().err == ""


def test_an_old_flag_without_a_value(started: Started, config: str) -> None:
    assert cli.main(["-f", config, "-h", ""]) == 0
    assert started.settings.header == ""
    assert started.warnings == ("-h is an old flag; write Header: in the settings file",)


def test_arguments_come_from_the_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["clamsmtpd", "--version"])
    assert cli.main() == 0
    assert __version__ in capsys.readouterr().out


def test_the_settings_can_be_read_again_from_anywhere(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").write_text("OutAddress: 127.0.0.1:10026\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["-f", "conf", "-p", "run/pid", "-m", "7"]) == 0
    (tmp_path / "conf").write_text("OutAddress: 127.0.0.1:10027\nPidFile: other\nTempDirectory: spool\n")
    os.chdir("/")
    again = started.load().settings
    assert again.out_address == NextHop(TcpAddress("127.0.0.1", 10027))
    assert (again.pid_file, again.temp_directory) == (f"{tmp_path}/run/pid", f"{tmp_path}/spool")
    assert again.max_connections == 7


def test_a_hangup_waits_for_whoever_can_read_the_settings_again(
    started: Started, config: str, mask: set[signal.Signals]
) -> None:
    assert signal.SIGHUP not in mask
    cli.main(["-f", config])
    assert signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ())
