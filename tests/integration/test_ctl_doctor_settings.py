"""The settings that doctor prints, put into the real Postfix, Exim and OpenSMTPD as they are."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from clamsmtpd.ctl.main import cli
from clamsmtpd.values import TcpAddress
from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.exim import Exim
from tests.support.howto import CLEAN, INFECTED, RECIPIENT, SENDER
from tests.support.opensmtpd import OpenSmtpd
from tests.support.postfix import Postfix
from tests.support.process import free_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

Start = Callable[..., Daemon]

HOSTS = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


def places(host: str, number: int) -> list[TcpAddress]:
    return [TcpAddress(host, free_port(host)) for _ in range(number)]


def printed(folder: Path, mta: str, way: int, *lines: str) -> list[str]:
    """Return the blocks that doctor prints."""
    path = folder / "conf"
    path.write_text("\n".join([*lines, ""]))
    done = CliRunner().invoke(cli, ["-f", str(path), "doctor", "--settings-for", mta, "--json"])
    assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(cli, ["-f", str(path), "doctor", "--settings-for", mta]).output
    texts = [block["text"] for block in json.loads(done.output)["ways"][way]["blocks"]]
    assert all(text in shown for text in texts)
    return texts


def send(place: TcpAddress, text: bytes) -> None:
    with smtplib.SMTP(str(place.host), place.port, local_hostname="outside.example.org") as client:
        client.sendmail(SENDER, [RECIPIENT], text)


@HOSTS
def test_postfix_after_the_queue(clamd: Clamd, start_daemon: Start, open_folder: Path, host: str) -> None:
    listen, back, front = places(host, 3)
    lines = [f"ClamAddress: {clamd.unix}", f"Listen: {listen}", f"OutAddress: {back}", "XClient: on"]
    main, master = printed(open_folder, "postfix", 0, *lines)
    with Postfix(main=main, master=master, reinjection=back, address=front, host=host) as postfix:
        daemon = start_daemon(*lines)
        send(front, CLEAN)
        (text,) = postfix.wait_for_messages(1)
        send(front, INFECTED)
        daemon.wait_for_log("status=VIRUS")
        postfix.wait_for_log("Virus found; message discarded")
        assert b"X-Virus-Scanned" in text
        assert len(postfix.messages()) == 1
        told = CliRunner().invoke(cli, ["-f", str(daemon.configuration), "doctor", "--json"])
        assert told.exit_code == 0, told.output


@pytest.mark.parametrize("lmtp", [False, True])
def test_postfix_by_lmtp_and_unix_sockets(clamd: Clamd, start_daemon: Start, open_folder: Path, lmtp: bool) -> None:
    (back, front) = places("127.0.0.1", 2)
    listen = f"{'lmtp:' if lmtp else ''}{open_folder}/filter"
    lines = [f"ClamAddress: {clamd.unix}", f"Listen: {listen}", f"OutAddress: {back}", "Action: bounce"]
    *main, master = printed(open_folder, "postfix", 0, *lines)
    service = {f"{front} inet": "smtp      inet"}
    for ours, shown in service.items():
        master = master.replace(shown, ours)
    with Postfix(main="".join(main), master=master, reinjection=back, address=front) as postfix:
        daemon = start_daemon(*lines)
        send(front, CLEAN)
        assert b"X-Virus-Scanned" in postfix.wait_for_messages(1)[0]
        if lmtp:
            send(front, INFECTED)
        else:
            with pytest.raises(smtplib.SMTPDataError, match="550"):
                send(front, INFECTED)
        daemon.wait_for_log("status=VIRUS")


@HOSTS
def test_postfix_before_the_queue(clamd: Clamd, start_daemon: Start, open_folder: Path, host: str) -> None:
    listen, back, front = places(host, 3)
    lines = [f"ClamAddress: {clamd.unix}", f"Listen: {listen}", f"OutAddress: {back}", "Action: bounce"]
    (master,) = printed(open_folder, "postfix", 1, *lines)
    master = master.replace("smtp      inet", f"{front} inet")
    with Postfix(master=master, address=front, reinjection=back, host=host) as postfix:
        start_daemon(*lines)
        send(front, CLEAN)
        assert b"X-Virus-Scanned" in postfix.wait_for_messages(1)[0]
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(front, INFECTED)
        assert refused.value.smtp_error == b"5.7.1 Virus found; message refused"
        assert len(postfix.messages()) == 1


@HOSTS
@pytest.mark.parametrize("listen", ["{}", "lmtp:{}", "lmtp:FOLDER/filter"])
def test_exim(clamd: Clamd, start_daemon: Start, open_folder: Path, host: str, listen: str) -> None:
    place, back, front = places(host, 3)
    listen = listen.format(place).replace("FOLDER", str(open_folder))
    lines = [f"ClamAddress: {clamd.unix}", f"Listen: {listen}", f"OutAddress: {back}"]
    interfaces, router, transport = printed(open_folder, "exim", 0, *lines)
    interfaces = interfaces.replace("[0.0.0.0]:25 ; [::0]:25", f"[{host}]:{front.port}")
    with Exim(interfaces=interfaces, first_router=router, first_transport=transport, address=front, host=host) as exim:
        daemon = start_daemon(*lines)
        send(front, CLEAN)
        assert b"X-Virus-Scanned" in exim.wait_for_messages(1)[0]
        send(front, INFECTED)
        daemon.wait_for_log("status=VIRUS")
        exim.wait_for_log("Virus found; message discarded")
        assert len(exim.messages()) == 1


@HOSTS
def test_opensmtpd(clamd: Clamd, start_daemon: Start, open_folder: Path, host: str) -> None:
    listen, back, front = places(host, 3)
    lines = [f"ClamAddress: {clamd.unix}", f"Listen: {listen}", f"OutAddress: {back}"]
    (configuration,) = printed(open_folder, "opensmtpd", 0, *lines)
    for shown, ours in {
        "listen on 0.0.0.0 port 25": f"listen on {host} port {front.port}",
        # The tests' root has no interface of that name to be asked about.
        "listen on lo port": "listen on 127.0.0.1 port",
        'action "local" maildir': 'action "local" maildir "/mail" virtual { "@" = nobody }',
    }.items():
        configuration = configuration.replace(shown, ours)
    with OpenSmtpd(configuration=configuration, address=front, host=host) as opensmtpd:
        daemon = start_daemon(*lines)
        send(front, CLEAN)
        assert b"X-Virus-Scanned" in opensmtpd.wait_for_messages(1)[0]
        send(front, INFECTED)
        daemon.wait_for_log("status=VIRUS")
        assert len(opensmtpd.messages()) == 1
