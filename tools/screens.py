"""Makes the screens of the documentation: the daemon among a real Postfix and a real clamd, seen with clamsmtpctl.

It needs root and tmux. All runs in namespaces of its own, where the addresses and paths of the manual can be had, and
nothing is left of it. What is written to docs/reference/screens is what a terminal of 100 columns and 30 lines showed.
"""

from __future__ import annotations

import os
import shutil
import smtplib
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from email.message import EmailMessage
from pathlib import Path

from clamsmtpd.values import TcpAddress
from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.maildir import NOBODY
from tests.support.postfix import Postfix
from tests.support.process import wait_until
from tests.support.signatures import daily

ROOT = Path(__file__).resolve().parent.parent
SCREENS = ROOT / "docs" / "reference" / "screens"
COLUMNS, LINES = 100, 30

_INSIDE = "CLAMSMTPD_SCREENS"

SETTINGS = """\
Listen: 127.0.0.1:10025
OutAddress: 127.0.0.1:10026
ClamAddress: /run/clamav/clamd.ctl
TempDirectory: /var/spool/clamsmtp
Admin: /run/clamsmtp/admin
Quarantine: on
User: nobody
"""

#: The name of each screen, the command that is shown, and whether it runs until it is ended.
COMMANDS = (
    ("check", "clamsmtpctl check", False),
    ("doctor", "clamsmtpctl doctor --to postmaster@example.org", False),
    ("quarantine-list", "clamsmtpctl quarantine list", False),
    ("explain", "clamsmtpctl explain 100000-2", False),
    # It sends more mail.
    ("top", "clamsmtpctl top", True),
)


def message(sender: str, recipient: str, subject: str, *, attached: str = "") -> EmailMessage:
    """Return a message, with the EICAR test file as an attachment of that name."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = sender, recipient, subject
    mail.set_content("Please see below.\n")
    if attached:
        mail.add_attachment(EICAR, maintype="application", subtype="octet-stream", filename=attached)
    return mail


def send_some() -> None:
    """Send some mail, a part of it infected."""
    mails = [
        message("alice@example.net", "bob@example.org", "lunch"),
        message("billing@example.com", "bob@example.org", "invoice", attached="invoice.exe"),
        message("carol@example.net", "dave@example.org", "minutes"),
        message("", "erin@example.org", "returned mail", attached="report.scr"),
    ]
    with smtplib.SMTP("127.0.0.1", 10025, local_hostname="mx.example.net") as client:
        for mail in mails:
            client.send_message(mail, from_addr=mail["From"] or "", to_addrs=[mail["To"]])


class Terminal:
    """A terminal of tmux in which one command after the other is run."""

    def __init__(self, settings: Path) -> None:
        self._settings = settings
        self._name = f"clamsmtpd-screens-{os.getpid()}"

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-L", self._name, "-f", "/dev/null", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def show(self, command: str, *, live: bool) -> str:
        """Run a command of clamsmtpctl; return what the terminal shows when it has ended, or after some seconds."""
        program = f"{sys.executable} -m clamsmtpd.ctl -f {self._settings}"
        typed = command.replace("clamsmtpctl", program, 1)
        size = ("-x", str(COLUMNS), "-y", str(LINES))
        self._tmux(
            "new-session", "-d", *size, "env", "NO_COLOR=1", "sh", "-c", f"{typed} 2>&1; printf '\\n[done]'; sleep 60"
        )
        try:
            if live:
                for _ in range(20):
                    send_some()
                    time.sleep(0.2)
                shown = self._tmux("capture-pane", "-p")
            else:
                wait_until(lambda: "[done]" in self._tmux("capture-pane", "-p", "-S", "-200"), command, seconds=120)
                shown = self._tmux("capture-pane", "-p", "-S", "-200").partition("[done]")[0]
        finally:
            with suppress(subprocess.CalledProcessError):
                self._tmux("kill-session")
        return "\n".join(line.rstrip() for line in shown.rstrip().splitlines())


def make(names: set[str]) -> None:
    """Run everything, and write the screens of these names, or all."""
    for place in ("/run", "/var/spool"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for folder in ("/run/clamav", "/run/clamsmtp", "/var/spool/clamsmtp"):
        Path(folder).mkdir(mode=0o755)
    for folder in ("/run/clamsmtp", "/var/spool/clamsmtp"):
        os.chown(folder, NOBODY, NOBODY)
    with ExitStack() as stack:
        clamd = stack.enter_context(Clamd(database={"daily.cud": daily(27960)}))
        Path("/run/clamav/clamd.ctl").symlink_to(clamd.unix.path)
        if Path("/etc/clamav").is_dir():
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/clamav"], check=True)
            shutil.copy(clamd.folder / "clamd.conf", "/etc/clamav/clamd.conf")
        stack.enter_context(Postfix(reinjection=TcpAddress("127.0.0.1", 10026)))
        daemon = stack.enter_context(Daemon(*SETTINGS.splitlines(), "Workers: 2", level=3))
        daemon.wait_for_log("ClamAV ")
        send_some()
        # As long as the path that it would have elsewhere, so that lines are cut at the same place.
        Path("/run/clamsmtpd.conf").symlink_to(daemon.configuration)
        terminal = Terminal(Path("/run/clamsmtpd.conf"))
        for name, command, live in COMMANDS:
            if names and name not in names:
                continue
            text = terminal.show(command, live=live).replace("/run/clamsmtpd.conf", "/etc/clamsmtpd.conf")
            (SCREENS / f"{name}.txt").write_text(f"$ {command}\n{text}\n")
            print(f"wrote {(SCREENS / name).relative_to(ROOT)}.txt")


def main() -> int:
    """Go into namespaces, and make the screens that are named on the command line, or all."""
    if os.environ.get(_INSIDE):
        make(set(sys.argv[1:]))
        return 0
    if os.geteuid() != 0 or shutil.which("tmux") is None:
        print("screens: this needs root and tmux", file=sys.stderr)
        return 1
    command = ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, "-m", "tools.screens"]
    return subprocess.run([*command, *sys.argv[1:]], env={**os.environ, _INSIDE: "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
