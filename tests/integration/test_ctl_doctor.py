"""clamsmtpctl doctor, beside the real daemon, clamd and Postfix: all well, and each fault with its mend."""

from __future__ import annotations

import grp
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clamsmtpd.values import TcpAddress
from tests.support.certificates import make_certificate
from tests.support.clamd import EICAR_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.postfix import Postfix
from tests.support.process import free_port
from tests.support.signatures import daily
from tests.support.sink import Sink

pytestmark = [pytest.mark.timeout(120)]

Start = Callable[..., Daemon]


@dataclass
class Told:
    """What doctor said by --json."""

    status: int
    steps: list[dict[str, str]]
    mta: str | None

    def step(self, beginning: str) -> dict[str, str]:
        (found,) = [step for step in self.steps if step["name"].startswith(beginning)]
        return found

    @property
    def troubles(self) -> list[str]:
        return [step["name"] for step in self.steps if step["state"] in {"failed", "warning"}]


def command(configuration: Path, *arguments: str, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*wrapper, sys.executable, "-m", "clamsmtpd.ctl", "-f", str(configuration), "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert "Traceback" not in done.stderr
    return done


def doctor(configuration: Path, *arguments: str) -> Told:
    done = command(configuration, "--json", *arguments)
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["status"] == done.returncode
    return Told(done.returncode, told["steps"], told["mta"])


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    with Postfix() as running:
        yield running


def alone(folder: Path, *lines: str) -> Path:
    """Write a settings file for which no daemon runs."""
    path = folder / "conf"
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    path.write_text("\n".join([*lines, f"TempDirectory: {spool}", f"Listen: 127.0.0.1:{free_port()}", ""]))
    return path


@pytest.mark.root
def test_all_is_well_and_a_virus_sent_now_is_stopped(
    clamd: Clamd, postfix: Postfix, start_daemon: Start, tmp_path: Path
) -> None:
    daemon = start_daemon(
        f"ClamAddress: {clamd.unix}",
        f"ClamAddress: {clamd.tcp}",
        f"OutAddress: {postfix.reinjection}",
        "User: nobody",
        "XClient: on",
        f"Admin: {tmp_path}/admin",
    )
    before = len(postfix.messages())
    told = doctor(daemon.configuration, "--to", "b@example.org", "--from", "a@example.org")
    assert (told.status, told.troubles, told.mta) == (0, [], "postfix")
    assert {step["state"] for step in told.steps} == {"ok"}
    (text,) = postfix.wait_for_messages(before + 1)[before:]
    subject = re.search(r'subject "(.*)"', told.step("a clean message")["finding"])
    assert subject is not None
    assert f"Subject: {subject[1]}\n".encode() in text
    assert b"X-Virus-Scanned" in text
    assert "Virus found; message discarded" in told.step("a message with the EICAR")["finding"]
    assert [line.rpartition(", ")[2] for line in daemon.message_lines()] == [
        "status=CLEAN",
        f"status=VIRUS:{EICAR_NAME}",
    ]
    done = command(daemon.configuration)
    assert done.returncode == 0
    assert "✓ settings" in done.stdout
    assert "NOT TRIED: nobody has seen a virus stopped yet" in done.stdout
    assert "clamsmtpctl doctor --settings-for postfix" in done.stdout
    # Nothing more was sent, least of all to the next hop itself.
    assert len(postfix.messages()) == before + 1


@pytest.mark.parametrize(
    ("action", "said", "arrive"),
    [
        ("Action: bounce", "550 5.7.1 Virus found; message refused", 1),
        ("ActionFor: Eicar* bounce", "550 5.7.1 Virus found; message refused", 1),
        ("Action: pass", "it was delivered, with X-Virus-Infected", 2),
    ],
)
def test_what_each_action_did_is_told(
    clamd: Clamd, sink: Sink, start_daemon: Start, action: str, said: str, arrive: int
) -> None:
    daemon = start_daemon(f"ClamAddress: {clamd.unix}", f"OutAddress: {sink.address}", action)
    told = doctor(daemon.configuration, "--to", "b@example.org")
    assert told.step("a message with the EICAR")["state"] == "ok"
    assert said in told.step("a message with the EICAR")["finding"]
    assert len(sink.messages) == arrive
    assert (b"X-Virus-Infected: " in sink.messages[-1]) is (arrive == 2)


def test_where_we_listen_for_lmtp_lmtp_is_spoken(clamd: Clamd, start_daemon: Start) -> None:
    with Sink(lmtp=True) as hop:
        daemon = start_daemon(f"ClamAddress: {clamd.unix}", f"OutAddress: lmtp:{hop.address}", lmtp=True)
        told = doctor(daemon.configuration, "--to", "b@example.org")
        assert told.troubles == []
        assert len(hop.wait_for_messages(1)) == 1


def test_a_daemon_that_wants_a_proxy_header_from_us_gets_one(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon(
        f"ClamAddress: {clamd.unix}",
        f"OutAddress: {sink.address}",
        "ProxyProtocol: on",
        "TrustedClients: 127.0.0.1",
    )
    assert doctor(daemon.configuration, "--to", "b@example.org").troubles == []
    assert len(sink.messages) == 1


def test_clamd_that_is_down_is_told_with_how_to_start_it(sink: Sink, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(f"ClamAddress: {tmp_path}/clamd", f"OutAddress: {sink.address}", "TimeOut: 4")
    told = doctor(daemon.configuration, "--clamd-conf", "/none", "--to", "b@example.org")
    assert told.status == 1
    step = told.step("clamd at")
    assert step["finding"] == "nobody listens there: No such file or directory"
    assert "systemctl start clamav-daemon" in step["mend"]
    message = told.step("a clean message")
    assert "451 4.3.0 Virus scan not possible now" in message["finding"]
    assert message["mend"] == "see the steps about clamd and TempDirectory"


def test_clamd_that_is_elsewhere_is_told_with_the_setting(clamd: Clamd, sink: Sink, tmp_path: Path) -> None:
    told = doctor(
        alone(tmp_path, f"ClamAddress: {tmp_path}/clamd", f"OutAddress: {sink.address}"),
        "--clamd-conf",
        str(clamd.folder / "clamd.conf"),
    )
    assert f"write ClamAddress: {clamd.unix}, then" in told.step("clamd at")["mend"]


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "folder", "finding", "mend"),
    [
        (0o660, 0o755, "may not connect to {socket} (root:clamav 0660)", "usermod -aG clamav nobody && "),
        (0o600, 0o755, "may not connect to {socket} (root:clamav 0600)", "in clamd.conf: LocalSocketMode 666"),
        (0o666, 0o710, "may not go through {folder} (root:clamav 0710)", "usermod -aG clamav nobody && "),
        (0o666, 0o700, "may not go through {folder} (root:clamav 0700)", "chmod o+x {folder}"),
    ],
)
def test_a_socket_that_the_daemons_user_may_not_use_is_told_with_who_needs_what(
    clamd: Clamd, sink: Sink, open_folder: Path, mode: int, folder: int, finding: str, mend: str
) -> None:
    group = grp.getgrnam("clamav").gr_gid
    place = open_folder / "run"
    place.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "clamd"))
        listener.listen()
        os.chown(place / "clamd", 0, group)
        (place / "clamd").chmod(mode)
        os.chown(place, 0, group)
        place.chmod(folder)
        told = doctor(alone(open_folder, f"ClamAddress: {place}/clamd", f"OutAddress: {sink.address}", "User: nobody"))
    step = told.step("clamd at")
    names = {"socket": f"{place}/clamd", "folder": str(place)}
    assert step["state"] == "failed"
    assert step["finding"] == "user nobody " + finding.format(**names)
    assert step["mend"].startswith(mend.format(**names))


def test_a_mail_server_in_clamds_place_is_told(sink: Sink, tmp_path: Path) -> None:
    told = doctor(
        alone(tmp_path, f"ClamAddress: {sink.address}", f"OutAddress: {sink.address}"), "--clamd-conf", "/none"
    )
    step = told.step("clamd at")
    assert step["state"] == "failed"
    assert "that is an SMTP server, not clamd" in step["finding"]
    assert step["mend"].startswith("that is a mail server")


def test_a_clamd_without_signatures_is_blind_and_old_ones_are_told(sink: Sink, tmp_path: Path) -> None:
    with Clamd(blind=True, database={"daily.cud": daily(27000)}) as clamd:
        told = doctor(alone(tmp_path, f"ClamAddress: {clamd.unix}", f"OutAddress: {sink.address}"))
        step = told.step("verdicts of")
        assert step["state"] == "failed"
        assert step["finding"] == "it is blind: it calls the EICAR test file clean"
        assert "freshclam" in step["mend"]
        assert "days old, of 2026-11-25" in told.step("signatures of")["finding"]


def test_a_next_hop_that_is_down_is_told_there_and_where_we_listen(clamd: Clamd, start_daemon: Start) -> None:
    hop = TcpAddress("127.0.0.1", free_port())
    daemon = start_daemon(f"ClamAddress: {clamd.unix}", f"OutAddress: {hop}")
    told = doctor(daemon.configuration, "--to", "b@example.org")
    assert told.status == 1
    assert told.step("next hop")["finding"] == "nobody listens there: Connection refused"
    assert "correct OutAddress" in told.step("next hop")["mend"]
    listen = told.step("Listen")
    assert "421 4.4.1 Next hop cannot be reached" in listen["finding"]
    assert told.step("two messages")["state"] == "skipped"
    done = command(daemon.configuration)
    assert "belong to this:\n" in done.stdout
    assert f"\n{hop} inet n " in done.stdout


@pytest.mark.root
def test_a_next_hop_that_wants_tls_is_told_with_the_setting(clamd: Clamd, start_daemon: Start, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with Postfix(
        reinjection_settings={
            "smtpd_tls_security_level": "encrypt",
            "smtpd_tls_chain_files": f"{certificate.key}, {certificate.certificate}",
        }
    ) as postfix:
        daemon = start_daemon(f"ClamAddress: {clamd.unix}", f"OutAddress: {postfix.reinjection}")
        told = doctor(daemon.configuration, "--to", "b@example.org")
        assert told.status == 1
        step = told.step("mail to the next hop")
        assert "530 5.7.0 Must issue a STARTTLS command first" in step["finding"]
        assert step["mend"].startswith("write OutTLS: encrypt")
        # As it says, so it is mended.
        daemon = start_daemon(f"ClamAddress: {clamd.unix}", f"OutAddress: {postfix.reinjection}", "OutTLS: encrypt")
        told = doctor(daemon.configuration, "--to", "b@example.org")
        assert told.troubles == []
        assert told.step("OutTLS encrypt")["finding"] == "TLS works"
        # Nobody here vouches for that certificate.
        daemon = start_daemon(f"ClamAddress: {clamd.unix}", f"OutAddress: {postfix.reinjection}", "OutTLS: verify")
        told = doctor(daemon.configuration)
        step = told.step("OutTLS verify")
        assert step["state"] == "failed"
        assert "the TLS handshake failed: " in step["finding"]
        assert "SSL_CERT_FILE" in step["mend"]


@pytest.mark.parametrize(("level", "state"), [("may", "ok"), ("encrypt", "failed")])
def test_a_next_hop_without_tls_is_as_bad_as_the_settings_say(
    sink: Sink, tmp_path: Path, level: str, state: str
) -> None:
    told = doctor(alone(tmp_path, f"OutAddress: {sink.address}", f"OutTLS: {level}"))
    assert told.step("OutTLS")["state"] == state


@pytest.mark.root
def test_xclient_and_xforward_that_are_not_allowed_are_told_with_postfixs_setting(
    clamd: Clamd, start_daemon: Start
) -> None:
    refused = {"smtpd_authorized_xclient_hosts": "", "smtpd_authorized_xforward_hosts": ""}
    with Postfix(reinjection_settings=refused) as postfix:
        lines = [f"ClamAddress: {clamd.unix}", f"OutAddress: {postfix.reinjection}"]
        step = doctor(start_daemon(*lines, "XClient: on").configuration).step("XClient")
        assert step["state"] == "failed"
        place = f"below the service {postfix.reinjection} in master.cf"
        assert f"-o smtpd_authorized_xclient_hosts=127.0.0.0/8 {place}" in step["mend"]
        told = doctor(start_daemon(*lines).configuration)
        assert told.status == 0
        assert told.step("XFORWARD")["state"] == "warning"
        assert f"-o smtpd_authorized_xforward_hosts=127.0.0.0/8 {place}" in told.step("XFORWARD")["mend"]


def test_a_daemon_that_is_down_has_an_exit_status_of_its_own(clamd: Clamd, sink: Sink, tmp_path: Path) -> None:
    told = doctor(alone(tmp_path, f"ClamAddress: {clamd.unix}", f"OutAddress: {sink.address}"), "--to", "b@example.org")
    assert told.status == 3
    step = told.step("Listen")
    assert step["finding"] == "nobody listens there: Connection refused"
    assert "systemctl start clamsmtpd" in step["mend"]
    assert told.step("two messages")["state"] == "skipped"
    assert sink.messages == []


def test_another_server_in_the_daemons_place_is_told_and_gets_no_virus(clamd: Clamd, tmp_path: Path) -> None:
    with Sink() as hop, Sink({"greeting": b"220 other.example.test ESMTP Exim 4.96\r\n"}) as other:
        for listening, who in ((other, "another server answers: 220 other"), (hop, "the next hop itself answers: ")):
            path = tmp_path / "conf"
            path.write_text(
                f"ClamAddress: {clamd.unix}\nTempDirectory: {tmp_path}\n"
                f"Listen: {listening.address}\nOutAddress: {hop.address}\n"
            )
            told = doctor(path, "--to", "b@example.org")
            assert told.status == 1
            assert told.step("Listen")["state"] == "failed"
            assert told.step("Listen")["finding"].startswith(who)
        assert hop.messages == other.messages == []


def test_a_next_hop_that_is_the_daemon_itself_is_a_circle(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    daemon = start_daemon(
        f"ClamAddress: {clamd.unix}", f"OutAddress: 127.0.0.1:{port}", f"Listen: 127.0.0.1:{port}", "TimeOut: 4"
    )
    told = doctor(daemon.configuration, "--to", "b@example.org")
    assert told.status == 1
    assert told.step("next hop")["state"] == "failed"
    assert told.step("two messages")["state"] == "skipped"


def test_admin_that_nobody_answers_at_is_told(clamd: Clamd, sink: Sink, tmp_path: Path) -> None:
    told = doctor(
        alone(tmp_path, f"ClamAddress: {clamd.unix}", f"OutAddress: {sink.address}", f"Admin: {tmp_path}/admin")
    )
    step = told.step("Admin")
    assert step["state"] == "failed"
    assert "was it restarted since Admin was set?" in step["mend"]


@pytest.mark.root
def test_without_root_it_says_whose_rights_it_had(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon(f"ClamAddress: {clamd.unix}", f"OutAddress: {sink.address}", "User: nobody")
    done = command(
        daemon.configuration, wrapper=("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", "--")
    )
    if done.returncode == 1 and not done.stdout:
        pytest.skip(f"another user cannot run this Python: {done.stderr}")
    assert "! user nobody: what follows is seen as user daemon" in done.stdout
    assert "run this as root" in done.stdout


def test_settings_that_cannot_be_used_are_one_step_each(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text("Nonsense: 1\nOutAddress: 10026\nWorkers: x\n")
    told = doctor(path)
    assert told.status == 2
    assert [step["finding"].partition(": ")[0] for step in told.steps] == [f"{path}:1", f"{path}:3"]
