"""The command doctor: what it takes, what it prints, and what it looks at first."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clamsmtpd.config import load
from clamsmtpd.ctl import doctor as command
from clamsmtpd.ctl.examiner import Examiner, _owner_of
from clamsmtpd.ctl.main import cli
from tests.support.process import free_port, wait_until
from tests.support.sink import Sink
from tests.support.strangeserver import StrangeServer


def write(folder: Path, *lines: str) -> Path:
    """Write a settings file in which nobody is there to be asked."""
    path = folder / "conf"
    given = "\n".join(lines)
    own = {
        "TempDirectory": str(folder),
        "Listen": f"127.0.0.1:{free_port()}",
        "OutAddress": f"127.0.0.1:{free_port()}",
        "ClamAddress": f"{folder}/clamd",
    }
    path.write_text("".join(f"{name}: {value}\n" for name, value in own.items() if name not in given) + given + "\n")
    return path


def run(path: Path, *arguments: str) -> Result:
    done = CliRunner().invoke(cli, ["-f", str(path), "doctor", "--clamd-conf", "/none", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def steps(path: Path, *arguments: str) -> dict[str, dict[str, str]]:
    told = json.loads(run(path, "--json", *arguments).output)
    return {step["name"].split()[0]: step for step in told["steps"]}


@pytest.mark.parametrize(
    "address", ["a b@example.org", "a@example.org>", "<a@example.org>", "", "ä@example.org", "a\r\n"]
)
@pytest.mark.parametrize("option", ["--to", "--from"])
def test_an_address_that_could_be_more_than_one_is_bad_usage(tmp_path: Path, option: str, address: str) -> None:
    done = run(write(tmp_path), option, address)
    assert done.exit_code == 2
    assert "without blanks and angle brackets" in done.output


def test_each_fault_is_printed_with_its_mend(tmp_path: Path) -> None:
    done = run(write(tmp_path))
    assert done.exit_code == 3
    assert f"✓ TempDirectory {tmp_path}: " in done.output
    assert (
        f"✗ clamd at {tmp_path}/clamd: nobody listens there: No such file or directory\n    → systemctl" in done.output
    )
    assert "- two messages through the daemon: NOT TRIED" in done.output
    assert " failed, 1 not tried.\n" in done.output


def test_a_terminal_without_ticks_gets_words(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "clamsmtpd.ctl", "-f", str(write(tmp_path)), "doctor"],
        env=environment,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == b""
    assert b"\nok   TempDirectory" in done.stdout
    assert b"\nFAIL clamd at" in done.stdout
    assert b"\n    -> systemctl" in done.stdout


def test_what_a_server_says_plays_with_no_terminal(tmp_path: Path) -> None:
    with StrangeServer(b"554 \x1b[2Jgone\r\n", cut=True) as server:
        done = run(write(tmp_path, f"OutAddress: {server.address}"))
        assert "\x1b" not in done.output
        assert "it greets with 554 ?[2Jgone" in done.output


def test_settings_are_printed_alone(tmp_path: Path) -> None:
    done = run(write(tmp_path, "OutAddress: 127.0.0.1:10026"), "--settings-for", "postfix")
    assert done.exit_code == 0
    assert done.output.startswith(
        "\nPostfix, after the queue (Action: drop)\n\n# /etc/postfix/main.cf:\ncontent_filter"
    )
    assert "\n127.0.0.1:10026 inet n " in done.output
    done = run(write(tmp_path, "OutAddress: lmtp:127.0.0.1:24"), "--settings-for", "postfix")
    assert done.exit_code == 2
    assert "is no way back into a mail server" in done.output
    assert run(tmp_path / "none", "--settings-for", "postfix").exit_code == 2


def test_the_mail_server_that_is_there_is_known_by_its_greeting_or_its_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_installed", lambda: "exim")
    assert "The settings for exim that belong to this:\n" in run(write(tmp_path)).output
    with Sink({"greeting": b"220 mx ESMTP OpenSMTPD\r\n"}) as hop:
        assert json.loads(run(write(tmp_path, f"OutAddress: {hop.address}"), "--json").output)["mta"] == "opensmtpd"
    done = run(write(tmp_path, "OutAddress: lmtp:127.0.0.1:24"))
    assert "No settings for exim: OutAddress lmtp:127.0.0.1:24 is no way back" in done.output
    monkeypatch.setattr(command, "_installed", lambda: None)
    assert "The settings for" not in run(write(tmp_path)).output


def test_programs_tell_which_mail_server_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_PLACES", str(tmp_path))
    assert command._installed() is None
    (tmp_path / "smtpctl").touch(mode=0o755)
    assert command._installed() == "opensmtpd"


def test_a_warning_and_an_error_of_the_settings_are_steps(tmp_path: Path) -> None:
    step = steps(write(tmp_path, "Bounce: on"))["settings"]
    assert step["state"] == "warning"
    assert "Bounce is an old name" in step["finding"]
    step = steps(write(tmp_path, "TLSCertificate: /none/server.pem"))["settings"]
    assert step["state"] == "failed"
    assert step["finding"].startswith("TLSCertificate: /none/server.pem: ")


def test_a_temp_directory_that_is_not_there_comes_with_the_command_that_makes_it(tmp_path: Path) -> None:
    step = steps(write(tmp_path, f"TempDirectory: {tmp_path}/none", "User: nobody"))["TempDirectory"]
    assert step["state"] == "failed"
    owner = "nobody" if os.geteuid() == 0 else ""
    assert step["mend"].startswith(f"install -d -o {owner}")
    assert step["mend"].endswith(f" -m 0750 {tmp_path}/none")


def test_with_transparent_proxy_there_is_no_one_next_hop_and_no_message(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text(
        f"TransparentProxy: on\nListen: 127.0.0.1:{free_port()}\nTempDirectory: {tmp_path}\nClamAddress: {tmp_path}/c\n"
    )
    told = steps(path, "--to", "a@example.org")
    assert told["next"]["state"] == told["two"]["state"] == "skipped"
    assert "from a client behind the firewall" in told["two"]["mend"]


def test_a_port_alone_is_looked_for_as_for_a_client_of_this_host(tmp_path: Path) -> None:
    with Sink() as hop:
        assert steps(write(tmp_path, f"OutAddress: {hop.port}"))["next"]["state"] == "ok"


@pytest.mark.parametrize(
    ("listen", "trusted", "proxied"),
    [
        ("127.0.0.1:10025", "127.0.0.1", True),
        ("10025", "127.0.0.0/8", True),
        ("192.0.2.1:10025", "127.0.0.1", False),
        ("localhost:10025", "127.0.0.1", False),
        ("/run/filter", "/run/filter", True),
    ],
)
def test_a_proxy_header_goes_only_to_those_who_want_it_from_us(
    tmp_path: Path, listen: str, trusted: str, proxied: bool
) -> None:
    settings = load(
        str(write(tmp_path, f"Listen: {listen}", "ProxyProtocol: on", f"TrustedClients: {trusted}"))
    ).settings
    examiner = Examiner(settings, "conf")
    assert examiner._is_proxied(settings.listen[0]) is proxied


def test_the_daemons_user_is_known_by_its_pid_file(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    pid_file.write_text("x")
    assert _owner_of(None) is _owner_of("/none") is _owner_of(str(pid_file)) is None
    # Another program has the number now.
    pid_file.write_text("1\n")
    assert _owner_of(str(pid_file)) is None
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", "clamsmtpd"])
    try:
        # For a moment behind the start, the kernel knows no arguments.
        wait_until(lambda: b"clamsmtpd" in Path(f"/proc/{sleeper.pid}/cmdline").read_bytes(), "its arguments")
        pid_file.write_text(f"{sleeper.pid}\n")
        assert _owner_of(str(pid_file)) == pwd.getpwuid(os.geteuid()).pw_name
    finally:
        sleeper.kill()
        sleeper.wait()
