"""What doctor says of what it found: each finding with its mend, without a server."""

from __future__ import annotations

import email
import email.policy
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from clamsmtpd.clamd.canary import EICAR
from clamsmtpd.config import Settings, load
from clamsmtpd.ctl.examination.daemon import judge_admin, judge_listener
from clamsmtpd.ctl.examination.messages import (
    action_on,
    clean_message,
    infected_message,
    judge_clean,
    judge_infected,
)
from clamsmtpd.ctl.examination.nexthop import judge_next_hop
from clamsmtpd.ctl.examination.scanner import AGED, STALE, judge_scanner
from clamsmtpd.ctl.examination.steps import State, Step, admission, status_of
from clamsmtpd.ctl.looks import Delivery, ListenerLook, NextHopLook, ScannerLook
from clamsmtpd.ctl.output import Status
from clamsmtpd.ctl.rights import Access, Barrier, Entry
from clamsmtpd.smtp import replies
from clamsmtpd.values import Action, Address, Listen, NextHop, TcpAddress, UnixAddress

NOW = datetime(2026, 11, 25, 12, 0, 0)  # noqa: DTZ001 - as clamd writes it
CLAMD = UnixAddress("/run/clamav/clamd.ctl")
HOP = NextHop(TcpAddress("127.0.0.1", 10026))
LISTEN = Listen(TcpAddress("127.0.0.1", 10025))
NOBODY = Access("clamsmtp")
GOOD = ScannerLook(version="ClamAV 1.4.3", clean="clean", infected="infected:Eicar-Signature")
NAME = replies.NAME.decode()
POSTFIX = NextHopLook(banner="mx ESMTP Postfix", name="mx", offers={"size": "100", "xforward": "NAME"}, mail="250 ok")


def made(folder: Path, *lines: str) -> Settings:
    path = folder / "conf"
    path.write_text("\n".join([*(lines or ()), "" if "TransparentProxy: on" in lines else "OutAddress: 10026", ""]))
    return load(str(path)).settings


def scanner(look: ScannerLook, address: Address = CLAMD, clamd: tuple[Address, ...] = ()) -> list[Step]:
    return list(judge_scanner(address, look, access=NOBODY, clamd=clamd, now=NOW))


# ---- scanners -----------------------------------------------------------------------------------


def test_a_good_scanner_is_three_good_steps() -> None:
    version = f"ClamAV 1.4.3/27600/{NOW - timedelta(hours=30):%a %b %e %H:%M:%S %Y}"
    steps = scanner(replace(GOOD, version=version))
    assert [step.state for step in steps] == [State.OK] * 3
    assert [step.finding for step in steps] == [
        "ClamAV 1.4.3",
        "1.2 days old, of 2026-11-24 06:00",
        "it finds the EICAR test file (Eicar-Signature), and nothing in a clean one",
    ]


@pytest.mark.parametrize(
    ("age", "state"),
    [
        (timedelta(days=-1), State.OK),
        (AGED - timedelta(seconds=1), State.OK),
        (AGED, State.WARNING),
        (STALE - timedelta(seconds=1), State.WARNING),
        (STALE, State.FAILED),
    ],
)
def test_signatures_age(age: timedelta, state: State) -> None:
    step = scanner(replace(GOOD, version=f"ClamAV 1.4.3/27600/{NOW - age:%a %b %e %H:%M:%S %Y}"))[1]
    assert step.state is state
    assert ("freshclam" in step.mend) is (state is not State.OK)


def test_signatures_without_a_date_are_said_to_have_none() -> None:
    step = scanner(GOOD)[1]
    assert (step.state, "no date" in step.finding) == (State.OK, True)


@pytest.mark.parametrize(
    ("clean", "infected", "finding"),
    [
        ("clean", "clean", "it is blind"),
        ("infected:Bad.Signature", "infected:Eicar", "it finds Bad.Signature in a clean file"),
        ("no answer within 10 s", "no answer within 10 s", "it has no verdict on a clean file: no answer"),
        ("clean", "it answered", "it has no verdict on the EICAR test file: it answered"),
    ],
)
def test_wrong_verdicts(clean: str, infected: str, finding: str) -> None:
    step = scanner(replace(GOOD, clean=clean, infected=infected))[2]
    assert step.state is State.FAILED
    assert step.finding.startswith(finding)
    assert step.mend


MISSING = ScannerLook("Connection refused", missing=True)


@pytest.mark.parametrize(
    ("address", "look", "clamd", "mend"),
    [
        (CLAMD, MISSING, (), "systemctl start clamav-daemon"),
        (CLAMD, MISSING, (UnixAddress("/run/clamav/other"),), "write ClamAddress: /run/clamav/other, then"),
        (CLAMD, MISSING, (UnixAddress("/var/run/clamav/clamd.ctl"),), "systemctl start clamav-daemon"),
        (TcpAddress("127.0.0.1", 3310), MISSING, (CLAMD,), f"write ClamAddress: {CLAMD}, then"),
        (TcpAddress("127.0.0.1", 3310), MISSING, (CLAMD, TcpAddress("127.0.0.1", 3310)), "systemctl start"),
        # What another host's clamd does is not in this one's settings.
        (TcpAddress("192.0.2.1", 3310), MISSING, (CLAMD,), "systemctl start clamav-daemon"),
        (CLAMD, ScannerLook('it answered "220 x": that is an SMTP server, not clamd'), (), "that is a mail server"),
        (CLAMD, ScannerLook("no answer within 10 seconds"), (), "see clamd's log"),
    ],
)
def test_a_lost_scanner(address: Address, look: ScannerLook, clamd: tuple[Address, ...], mend: str) -> None:
    (step,) = scanner(look, address, clamd)
    assert step.state is State.FAILED
    assert mend in step.mend


def test_where_modes_allow_it_something_else_forbids_it() -> None:
    finding, mend = admission(NOBODY, "chmod")
    assert finding == "user clamsmtp may not connect"
    assert "AppArmor" in mend


def test_roots_own_group_is_not_given_to_anybody() -> None:
    socket = Entry("/run/s", 0, 0, stat.S_IFSOCK | 0o660)
    finding, mend = admission(Access("clamsmtp", Barrier(socket, "w")), "the setting")
    assert (finding, mend) == ("user clamsmtp may not connect to /run/s (root:root 0660)", "the setting")


# ---- next hop -----------------------------------------------------------------------------------


def next_hop(look: NextHopLook, settings: Settings, hop: NextHop = HOP) -> list[Step]:
    return list(judge_next_hop(settings, hop, look, access=NOBODY))


def test_a_good_next_hop_is_told_with_what_it_offers(tmp_path: Path) -> None:
    steps = next_hop(POSTFIX, made(tmp_path))
    assert {step.state for step in steps} == {State.OK}
    assert steps[0].finding == 'it greets with "mx ESMTP Postfix" and offers SIZE 100, XFORWARD'


@pytest.mark.parametrize(
    ("look", "mend"),
    [
        (NextHopLook("Connection refused", missing=True), "start the mail server"),
        (NextHopLook("Permission denied", refused=True), "AppArmor"),
        (NextHopLook("it answers LHLO with 500 5.5.2 what?"), "without lmtp:"),
        (NextHopLook("it answers EHLO with 500 5.5.1 LMTP here"), "write OutAddress: lmtp:"),
        (NextHopLook("it answers EHLO with 500 use LHLO"), "write OutAddress: lmtp:127.0.0.1:10026"),
        (NextHopLook("it answers HELO with 502 no", banner="mx LMTP Dovecot"), "write OutAddress: lmtp:"),
        (NextHopLook('it says what is no SMTP: "HTTP/1.1 400"'), "where the mail server listens"),
        (NextHopLook("it answers EHLO with 550 go away"), "see the next hop's log"),
        (NextHopLook("no answer in time"), "see the next hop's log"),
        (NextHopLook(banner=f"{NAME} ESMTP", name=NAME), "not a Listen"),
        (NextHopLook(banner="x ESMTP", name=NAME), "not a Listen"),
    ],
)
def test_a_next_hop_that_cannot_be_used(tmp_path: Path, look: NextHopLook, mend: str) -> None:
    (step,) = next_hop(look, made(tmp_path))
    assert step.state is State.FAILED
    assert mend in step.mend


@pytest.mark.parametrize(
    ("level", "changes", "state"),
    [
        ("off", {}, State.OK),
        ("off", {"starttls": True}, State.OK),
        ("may", {}, State.OK),
        ("may", {"starttls": True, "tls": True}, State.OK),
        ("may", {"starttls": True, "tls_fault": "no"}, State.WARNING),
        ("encrypt", {}, State.FAILED),
        ("encrypt", {"starttls": True, "tls": True}, State.OK),
        ("encrypt", {"starttls": True, "tls_fault": "no"}, State.FAILED),
        ("verify", {"starttls": True, "tls": True}, State.OK),
        ("verify", {"starttls": True, "tls_fault": "self-signed"}, State.FAILED),
    ],
)
def test_tls_is_as_good_as_the_settings_want_it(
    tmp_path: Path, level: str, changes: dict[str, Any], state: State
) -> None:
    step = next_hop(replace(POSTFIX, **changes), made(tmp_path, f"OutTLS: {level}"))[1]
    assert (step.name, step.state) == (f"OutTLS {level}", state)
    assert bool(step.mend) is (state is not State.OK)


@pytest.mark.parametrize(
    ("mail", "mend"),
    [
        ("530 5.7.0 Must issue a STARTTLS command first", "OutTLS: encrypt"),
        ("530 5.7.0 Authentication required", "mynetworks"),
        ("450 4.7.1 try later", "see the next hop's log"),
    ],
)
def test_a_next_hop_that_takes_no_mail_from_us(tmp_path: Path, mail: str, mend: str) -> None:
    step = next_hop(replace(POSTFIX, mail=mail), made(tmp_path))[2]
    assert step.finding == f"it answers MAIL with {mail}"
    assert mend in step.mend


@pytest.mark.parametrize(
    ("line", "changes", "state", "mend"),
    [
        ("XClient: on", {"offers": {"xclient": "ADDR"}}, State.OK, ""),
        ("XClient: on", {"local": "192.0.2.7"}, State.FAILED, "smtpd_authorized_xclient_hosts=192.0.2.7/32 below"),
        ("", {}, State.OK, ""),
        (
            "",
            {"offers": {}},
            State.WARNING,
            "smtpd_authorized_xforward_hosts=127.0.0.0/8 below the service 127.0.0.1:10026",
        ),
        ("", {"offers": {}, "banner": "mx ESMTP Exim 4"}, State.SKIPPED, ""),
    ],
)
def test_whether_it_learns_who_the_client_is(
    tmp_path: Path, line: str, changes: dict[str, Any], state: State, mend: str
) -> None:
    step = next_hop(replace(POSTFIX, **changes), made(tmp_path, line))[-1]
    assert step.state is state
    assert mend in step.mend


# ---- the daemon ---------------------------------------------------------------------------------

OURS = ListenerLook(said=f"220 {NAME} ESMTP", banner=f"{NAME} ESMTP", name=NAME)


@pytest.mark.parametrize(
    ("look", "state", "unreachable"),
    [
        (OURS, State.OK, False),
        (replace(OURS, offers={"starttls": ""}, socket=(0, 0, 0o666)), State.OK, False),
        (ListenerLook("Connection refused", missing=True), State.FAILED, True),
        (ListenerLook("Permission denied", refused=True), State.FAILED, True),
        (ListenerLook("no answer in time"), State.FAILED, True),
        (ListenerLook("it greets with 421", said=replies.NEXT_HOP_UNREACHABLE.decode().strip()), State.FAILED, False),
        (ListenerLook("it greets with 554 no", said="554 no"), State.FAILED, False),
        (ListenerLook(said="220 mx ESMTP Postfix", banner="mx ESMTP Postfix", name="mx"), State.FAILED, False),
        (replace(OURS, fault="it answers EHLO with 451 x"), State.FAILED, False),
    ],
)
def test_who_answers_where_we_listen(tmp_path: Path, look: ListenerLook, state: State, unreachable: bool) -> None:
    step = judge_listener(made(tmp_path), LISTEN, look, POSTFIX)
    assert (step.state, step.unreachable) == (state, unreachable)
    assert bool(step.mend) is (state is not State.OK)


def test_with_transparent_proxy_a_loop_is_the_daemons_own_answer(tmp_path: Path) -> None:
    look = ListenerLook("it greets with 421", said=replies.LOOP.decode().strip())
    assert judge_listener(made(tmp_path, "TransparentProxy: on"), LISTEN, look, None).state is State.OK
    assert judge_listener(made(tmp_path), LISTEN, look, None).state is State.FAILED


def test_a_certificate_that_the_daemon_does_not_use_yet(tmp_path: Path) -> None:
    settings = made(tmp_path, "TLSCertificate: server.pem")
    assert judge_listener(settings, LISTEN, OURS, None).state is State.WARNING
    assert judge_listener(settings, LISTEN, replace(OURS, offers={"starttls": ""}), None).state is State.OK


def test_a_socket_with_another_mode_than_the_settings_say(tmp_path: Path) -> None:
    listen = Listen(UnixAddress("/run/s"), mode=0o660)
    step = judge_listener(made(tmp_path), listen, replace(OURS, socket=(0, 0, 0o666)), None)
    assert step.state is State.WARNING
    assert "SocketMode=0660" in step.mend
    assert judge_listener(made(tmp_path), listen, replace(OURS, socket=(0, 0, 0o660)), None).state is State.OK


@pytest.mark.parametrize(
    ("address", "status", "told", "fault", "mode", "state", "finding"),
    [
        (CLAMD, 200, {}, "", 0o600, State.OK, "the daemon is ready"),
        (TcpAddress("127.0.0.1", 9310), 200, {}, "", None, State.OK, "the daemon is ready"),
        (CLAMD, 200, {}, "", 0o666, State.WARNING, "all users may ask"),
        (CLAMD, 0, {}, "no answer; start it", None, State.FAILED, "no answer"),
        (CLAMD, 503, {"parts": [{"part": "a", "trouble": "t"}, {"part": "b", "trouble": ""}, 3]}, "", 0o600,
         State.FAILED, "it is not ready (503): a: t"),
        (CLAMD, 404, {"text": "nothing here"}, "", 0o600, State.FAILED, "it is not ready (404): nothing here"),
        (CLAMD, 500, {}, "", 0o600, State.FAILED, "it is not ready (500): {}"),
    ],
)  # fmt: skip
def test_what_the_daemon_says_of_itself(
    address: Address, status: int, told: dict[str, Any], fault: str, mode: int | None, state: State, finding: str
) -> None:
    step = judge_admin(address, status, told, fault, mode)
    assert step.state is state
    assert finding in step.finding


# ---- messages -----------------------------------------------------------------------------------


def delivered(reply: bytes, command: str = "the message") -> Delivery:
    return Delivery(command, int(reply[:3]), reply.decode().strip())


QUEUED = delivered(b"250 2.0.0 Ok: queued as 1")
DROPPED, BOUNCED = delivered(replies.VIRUS_DROPPED), delivered(replies.VIRUS_BOUNCED)
FAILED = delivered(replies.SCAN_FAILED)


@pytest.mark.parametrize(
    ("delivery", "state", "mend"),
    [
        (QUEUED, State.OK, ""),
        (DROPPED, State.FAILED, "the verdicts of clamd"),
        (BOUNCED, State.FAILED, "the verdicts of clamd"),
        (FAILED, State.FAILED, "the steps about clamd"),
        (delivered(b"550 5.1.1 no such user", "RCPT"), State.FAILED, "give an address that it takes"),
        (delivered(replies.NEXT_HOP_UNREACHABLE, "MAIL"), State.FAILED, "the next hop cannot be reached"),
        (delivered(b"554 5.6.0 spam"), State.FAILED, "the next hop's"),
        (Delivery("the connection", fault="Connection refused"), State.FAILED, "see the daemon's log"),
    ],
)
def test_a_clean_message(delivery: Delivery, state: State, mend: str) -> None:
    step = judge_clean(delivery, "token", "b@example.org")
    assert step.state is state
    assert mend in step.mend


@pytest.mark.parametrize(
    ("delivery", "action", "state"),
    [
        (DROPPED, Action.DROP, State.OK),
        (BOUNCED, Action.BOUNCE, State.OK),
        (QUEUED, Action.PASS, State.OK),
        (QUEUED, Action.DROP, State.FAILED),
        (QUEUED, Action.BOUNCE, State.FAILED),
        (DROPPED, Action.BOUNCE, State.WARNING),
        (BOUNCED, Action.DROP, State.WARNING),
        (FAILED, Action.DROP, State.FAILED),
        # The next hop's own refusal is not ours.
        (delivered(b"550 5.7.1 virus"), Action.BOUNCE, State.FAILED),
        (delivered(b"550 5.1.1 no such user", "RCPT"), Action.BOUNCE, State.FAILED),
        (Delivery("the message", fault="no reply to the message in time"), Action.DROP, State.FAILED),
    ],
)
def test_an_infected_message(delivery: Delivery, action: Action, state: State) -> None:
    step = judge_infected(delivery, action, "token")
    assert step.state is state
    assert bool(step.mend) is (state is not State.OK)


def test_the_action_is_that_of_the_rule_for_the_virus(tmp_path: Path) -> None:
    settings = made(tmp_path, "Action: drop", "ActionFor: eicar* bounce")
    assert action_on(settings, "Eicar-Signature") is Action.BOUNCE
    assert action_on(settings, "Other") is Action.DROP


def parsed(octets: bytes) -> EmailMessage:
    assert all(line.endswith(b"\r\n") and not line.startswith(b".") for line in octets.splitlines(keepends=True))
    assert b"\n" not in octets.replace(b"\r\n", b"")
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert not message.defects
    return message


def test_the_messages_are_good_mail_that_no_robot_answers() -> None:
    now = datetime(2026, 11, 25, tzinfo=UTC)
    clean, infected = (
        parsed(make("0123", "a@example.org", "b@example.org", now)) for make in (clean_message, infected_message)
    )
    for message in (clean, infected):
        assert "0123" in message["Subject"]
        assert (message["To"], message["Auto-Submitted"]) == ("b@example.org", "auto-generated")
    assert clean["Message-ID"] != infected["Message-ID"]
    (attachment,) = infected.iter_attachments()
    assert (attachment.get_filename(), attachment.get_content()) == ("eicar.com", EICAR)


# ---- the whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "status"),
    [
        ([], Status.OK),
        ([Step("a", State.OK, "x"), Step("b", State.WARNING, "x"), Step("c", State.SKIPPED, "x")], Status.OK),
        ([Step("a", State.OK, "x"), Step("b", State.FAILED, "x")], Status.FAILED),
        ([Step("a", State.FAILED, "x"), Step("b", State.FAILED, "x", unreachable=True)], Status.UNREACHABLE),
    ],
)
def test_the_exit_status(steps: list[Step], status: Status) -> None:
    assert status_of(steps) is status
