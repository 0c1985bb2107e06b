"""A Dovecot of our own that takes mail by LMTP, unpacked beside the system, in a small root of its own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress
from tests.support.certificates import Certificate
from tests.support.chroot import Chroot
from tests.support.maildir import NOBODY, Maildir
from tests.support.process import accepts, free_port

__all__ = ["FULL", "UNKNOWN", "Dovecot"]

#: The one user that does not exist, at any domain: refused at RCPT.
UNKNOWN = "unknown"

#: The one user whose mailbox holds no more: accepted at RCPT, refused after the message.
FULL = "full"

_CONFIGURATION = """
protocols = lmtp
listen = {host}
hostname = mx.example.test
log_path = /var/log/dovecot.log
ssl = {ssl}
first_valid_uid = 1
mail_location = maildir:/mail
mail_plugins = quota
login_trusted_networks = 127.0.0.0/8 ::1
auth_username_format = %Ln
recipient_delimiter =
default_internal_user = dovecot
default_login_user = dovenull

# Nobody logs in, but without one nothing else is looked up.
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = passwd-file
  args = /etc/unknown-users
  result_success = return-fail
}}
userdb {{
  driver = passwd-file
  args = /etc/users
}}
userdb {{
  driver = static
  args = uid={nobody} gid={nobody} home=/mail allow_all_users=yes
}}
plugin {{
  quota = count:mailbox
  quota_vsizes = yes
}}
service lmtp {{
  inet_listener lmtp {{
    address = {host}
    port = {port}
  }}
}}
{options}
"""


class Dovecot:
    """A running Dovecot; needs root.

    Mail comes in by LMTP at ``address``. It knows every user at every domain but UNKNOWN, and all mail ends in one
    mailbox, but none for FULL. XCLIENT is taken. With ``certificate`` it offers STARTTLS. ``options`` are further lines
    of its configuration.
    """

    def __init__(self, *options: str, certificate: Certificate | None = None, host: str = "127.0.0.1") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-dovecot-"))
        self.folder.chmod(0o755)
        self.address = TcpAddress(host, free_port(host))
        chroot = Chroot(
            self.folder / "root",
            unpacked=["usr/bin", "usr/sbin", "usr/lib/dovecot", "usr/share/dovecot"],
            users=["dovecot", "dovenull"],
        )
        chroot.make("run/dovecot")
        self._log = chroot.folder / "var" / "log" / "dovecot.log"
        self._mailbox = Maildir(chroot.make("mail", NOBODY))
        chroot.write("etc/unknown-users", f"{UNKNOWN}::{NOBODY}:{NOBODY}::/mail::\n")
        chroot.write("etc/users", f"{FULL}::{NOBODY}:{NOBODY}::/mail::userdb_quota_rule=*:bytes=1\n")
        lines = list(options)
        if certificate:
            chroot.bring(certificate.certificate, "etc/server.pem")
            chroot.bring(certificate.key, "etc/server.key")
            lines += ["ssl_cert = </etc/server.pem", "ssl_key = </etc/server.key"]
        chroot.write(
            "etc/dovecot.conf",
            _CONFIGURATION.format(
                host=host,
                port=self.address.port,
                ssl="yes" if certificate else "no",
                nobody=NOBODY,
                options="\n".join(lines),
            ),
        )
        self._program = chroot.start(
            ["/usr/sbin/dovecot", "-F", "-c", "/etc/dovecot.conf"], output=self.folder / "output"
        )
        try:
            self._program.wait_until(lambda: accepts((host, self.address.port)), "Dovecot to accept connections")
        except BaseException:
            self.stop()
            raise

    def messages(self) -> list[bytes]:
        """Return what was delivered; Dovecot adds Return-Path and Received on top."""
        return self._mailbox.messages()

    def wait_for_messages(self, number: int, *, seconds: float = 30) -> list[bytes]:
        """Return what was delivered once there are as many messages as ``number``."""
        return self._mailbox.wait_for_messages(number, self._program, seconds=seconds)

    def field(self, name: str) -> list[str]:
        """Return what it sees as the value of a header field, for each message that was delivered."""
        command = ["doveadm", "-c", "/etc/dovecot.conf", "fetch", "-u", "any@example.test", f"hdr.{name}", "all"]
        done = subprocess.run(
            ["nsenter", "--target", str(self._program.pid), "--mount", "--root", *command],
            capture_output=True,
            check=True,
            timeout=30,
        )
        values = done.stdout.decode().lower().split(f"hdr.{name}:".lower())[1:]
        return [value.strip("\n\f ") for value in values]

    def log(self) -> str:
        """Return what it has logged."""
        return self._log.read_text(encoding="utf-8", errors="backslashreplace") if self._log.exists() else ""

    def stop(self) -> None:
        """End it and remove its folder."""
        try:
            self._program.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
