"""``make run``: a clean and an infected message go through clamsmtpd, and what becomes of each is shown.

All of it is real but the mailbox: a clamd of its own, whose database knows the EICAR test file, and the daemon as a
process of its own. With a terminal it stays up for more mail until Ctrl-C; without one it ends by itself. The exit
status is 0 if everything came out as the manual promises.
"""

from __future__ import annotations

import signal
import smtplib
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.process import ProgramError
from tests.support.sink import Sink

SENDER = "alice@example.test"
RECIPIENT = "bob@example.test"
ADDED = b"X-Virus-Scanned: ClamAV using ClamSMTP\r\n"

FIELDS = f"From: {SENDER}\r\nTo: {RECIPIENT}\r\n".encode()
CLEAN = FIELDS + b"Subject: lunch\r\n\r\nAt noon, as always?\r\n"
INFECTED = FIELDS + b"Subject: invoice\r\n\r\n" + EICAR + b"\r\n"


class BrokenPromiseError(Exception):
    """Something came out otherwise than the manual says."""


def send(daemon: Daemon, text: bytes) -> str:
    """Send one message through the daemon; return the reply to its final dot."""
    with smtplib.SMTP(daemon.host, daemon.port, timeout=30) as client:
        client.ehlo("client.example.test")
        client.mail(SENDER)
        client.rcpt(RECIPIENT)
        code, reply = client.data(text)
    return f"{code} {reply.decode('ascii', 'backslashreplace')}"


def show(title: str, text: str) -> None:
    """Print a text under its title."""
    print(f"  {title}:")
    for line in text.splitlines():
        print(f"    | {line}")


def show_mail(text: bytes) -> None:
    """Print a message as the mailbox got it."""
    show("the mailbox got", text.decode("utf-8", "backslashreplace"))


def promise(kept: bool, what: str) -> None:  # noqa: FBT001
    """Raise BrokenPromiseError unless it was kept."""
    if not kept:
        raise BrokenPromiseError(what)


def show_clean(daemon: Daemon, mailbox: Sink) -> None:
    """Send a clean message and see it arrive."""
    print("\n== A clean message")
    reply = send(daemon, CLEAN)
    show("the client was told", reply)
    promise(reply.startswith("250 "), "the client of a clean message should be told 250")
    (arrived,) = mailbox.wait_for_messages(1)
    show_mail(arrived)
    head, body = CLEAN.split(b"\r\n\r\n")
    promise(arrived == head + b"\r\n" + ADDED + b"\r\n" + body, "the header should be all that was added")
    line = daemon.wait_for_log("status=CLEAN")
    show("the log says", line)


def show_infected(daemon: Daemon, mailbox: Sink) -> None:
    """Send an infected message and see that it does not arrive."""
    print("\n== A message with a virus (Action: drop)")
    reply = send(daemon, INFECTED)
    show("the client was told", reply)
    promise(reply.startswith("250 "), "with Action: drop the client should be told 250")
    line = daemon.wait_for_log(f"status=VIRUS:{EICAR_NAME}")
    show("the log says", line)
    promise(len(mailbox.messages) == 1, "an infected message should not be delivered")
    show("the mailbox got", "nothing")
    story = ctl(daemon, "explain", line.partition(":")[0])
    show("clamsmtpctl explain says", story)
    promise(f"verdict: infected, {EICAR_NAME}" in story, "explain should tell of the verdict")


def ctl(daemon: Daemon, *arguments: str) -> str:
    """Return what clamsmtpctl prints about the daemon."""
    command = [sys.executable, "-m", "clamsmtpd.ctl", "-f", str(daemon.configuration), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    promise(done.returncode == 0, f"clamsmtpctl {arguments[0]} should end with 0: {done.stderr.strip()}")
    return done.stdout


def stay(daemon: Daemon, mailbox: Sink, folder: Path) -> None:
    """Show what comes in until somebody has had enough. Raises KeyboardInterrupt then."""
    infected = folder / "infected.eml"
    infected.write_bytes(INFECTED)
    swaks = f"swaks --server {daemon.host}:{daemon.port} --from {SENDER} --to {RECIPIENT}"
    print(f"""
== Try it yourself
  clamsmtpd listens on {daemon.address}, the mailbox on {mailbox.address}, clamd knows the EICAR file.

  {swaks} --body hello
  {swaks} --data @{infected}

  Without swaks:
  python3 -c "import smtplib; smtplib.SMTP('{daemon.host}', {daemon.port}).sendmail('{SENDER}', '{RECIPIENT}', \
open('{infected}').read())"

  See what it does, with "source .venv/bin/activate" before:
  clamsmtpctl -f {daemon.configuration} top
  clamsmtpctl -f {daemon.configuration} doctor --to {RECIPIENT}
  clamsmtpctl -f {daemon.configuration} quarantine list

  Ctrl-C ends it. The log, and what arrives in the mailbox:
""")
    mails, lines = len(mailbox.messages), len(daemon.log_lines())
    while True:
        promise(daemon.running, "clamsmtpd should run until it is told to stop")
        for line in daemon.log_lines()[lines:]:
            print(f"  {line}", flush=True)
            lines += 1
        for text in mailbox.messages[mails:]:
            show_mail(text)
            mails += 1
        time.sleep(0.2)


def demonstrate(folder: Path) -> None:
    """Start everything, show both messages, and stop everything."""
    with ExitStack() as stack:
        clamd = stack.enter_context(Clamd())
        mailbox = stack.enter_context(Sink())
        settings = [f"OutAddress: {mailbox.address}", f"ClamAddress: {clamd.unix}", "Quarantine: on"]
        daemon = stack.enter_context(Daemon(*settings, f"Admin: {folder}/admin", level=3))
        print(f"client -> clamsmtpd ({daemon.address}) -> mailbox ({mailbox.address})")
        print(f"                    `-> clamd ({clamd.unix})")
        show_clean(daemon, mailbox)
        show_infected(daemon, mailbox)
        if sys.stdin.isatty():
            try:
                stay(daemon, mailbox, folder)
            except KeyboardInterrupt:
                print("\n== Stopping")
        promise(daemon.stop() == 0, "clamsmtpd should stop with exit status 0")


def main() -> int:
    """Return the exit status."""
    # What is stopped on the way out is stopped for SIGTERM and a closed terminal too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="clamsmtpd-demo-") as folder:
        Path(folder).chmod(0o755)
        tempfile.tempdir = folder
        try:
            demonstrate(Path(folder))
        except (BrokenPromiseError, ProgramError, OSError, smtplib.SMTPException) as error:
            print(f"\nThis did not come out as promised: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    print("\nEverything came out as promised.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
