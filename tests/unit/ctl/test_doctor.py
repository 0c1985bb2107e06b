"""What doctor says, without anybody being asked; and what it makes of strange servers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from clamsmtpd.config import load
from clamsmtpd.ctl import examination
from clamsmtpd.ctl.examination import State, examine
from clamsmtpd.ctl.main import cli
from clamsmtpd.ctl.mtas import MTAS, settings_for
from clamsmtpd.ctl.nexthop import Client

FILES = Path(__file__).resolve().parents[3] / "docs" / "howto" / "files"


@pytest.mark.parametrize(
    ("mta", "files"),
    [
        ("postfix", ["postfix-after-queue/main.cf", "postfix-after-queue/master.cf"]),
        ("exim", ["exim/interfaces.conf", "exim/router.conf", "exim/transport.conf"]),
        ("opensmtpd", ["opensmtpd/smtpd.conf"]),
    ],
)
def test_the_settings_for_a_mail_server_are_those_of_the_how_to_which_are_tried_with_it(
    mta: str, files: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "conf"
    path.write_text("Listen: 127.0.0.1:10025\nOutAddress: 127.0.0.1:10026\n")
    found = settings_for(mta, load(str(path)).settings)
    assert [text for _, text in found] == [(FILES / file).read_text() for file in files]


@pytest.mark.parametrize("mta", MTAS)
def test_they_have_the_addresses_of_the_settings_file(mta: str, tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text("Listen: 2525\nOutAddress: 127.0.0.1:2626\n")
    done = CliRunner().invoke(cli, ["-f", str(path), "doctor", "--settings-for", mta])
    assert done.exit_code == 0
    assert "2525" in done.output
    assert "2626" in done.output
    assert "10025" not in done.output
    told = json.loads(CliRunner().invoke(cli, ["-f", str(path), "doctor", "--settings-for", mta, "--json"]).output)
    assert all(item["text"] in done.output for item in told["settings"])


def test_a_unix_socket_is_nothing_that_they_can_reach(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text("Listen: /run/front\nOutAddress: 127.0.0.1:2626\n")
    done = CliRunner().invoke(cli, ["-f", str(path), "doctor", "--settings-for", "postfix"])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)


Talk = Callable[[socket.socket], None]


@pytest.fixture
def strange(request: pytest.FixtureRequest) -> Iterator[int]:
    """A server that does to each client what the parameter says."""
    talk: Talk = request.param
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    sock, _ = listener.accept()
                except TimeoutError:
                    continue
                with sock:
                    try:
                        talk(sock)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        over.set()
        thread.join()


def silence(_sock: socket.socket) -> None:
    time.sleep(1.0)


def garbage(sock: socket.socket) -> None:
    sock.sendall(b"\x00\xff\x1b[31m" * 1000 + b"\r\n")


def endless(sock: socket.socket) -> None:
    for _ in range(2000):
        sock.sendall(b"220-" + b"x" * 4000 + b"\r\n")


def hang_up(_sock: socket.socket) -> None:
    pass


def busy(sock: socket.socket) -> None:
    sock.sendall(b"421 too many\r\n")


@pytest.mark.parametrize("strange", [silence, garbage, endless, hang_up, busy], indirect=True)
def test_whatever_servers_say_each_step_is_a_finding(
    strange: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "LIMIT", 0.3)
    path = tmp_path / "conf"
    path.write_text(
        f"Listen: 127.0.0.1:{strange}\nOutAddress: 127.0.0.1:{strange}\nClamAddress: 127.0.0.1:{strange}\n"
        f"Admin: {strange}\nTempDirectory: {tmp_path}\n"
    )
    steps = list(examine(load(str(path)).settings))
    assert len(steps) >= 4
    assert {step.state for step in steps} == {State.FAILED}
    assert all(step.finding for step in steps)
    done = CliRunner().invoke(cli, ["-f", str(path), "doctor", "--to", "a@example.org"])
    assert done.exit_code in {1, 3}
    assert "no message was sent, as the daemon does not answer" in done.output
    assert all(char.isprintable() or char == "\n" for char in done.output)


@pytest.mark.parametrize("recipient", ["a\n@example.org", "ü@example.org", "\udcff@example.org"])
def test_an_address_that_cannot_be_sent_is_a_failed_step(
    recipient: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "conf"
    path.write_text("OutAddress: 127.0.0.1:10026\n")
    monkeypatch.setattr(Client, "begin", lambda _client: None)
    (step,) = examination.try_mail(load(str(path)).settings, recipient, recipient)
    assert step.state is State.FAILED
