"""An OpenSMTPD of our own, unpacked beside the system, in a small root with the users that it wants."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress
from tests.support.chroot import Chroot
from tests.support.maildir import NOBODY, Maildir
from tests.support.process import accepts, free_port

__all__ = ["OpenSmtpd"]

_CONFIGURATION = """
{options}
smtp max-message-size 100M
listen on {host} port {port} hostname mx.example.test {listener}
{action}
match from any for any action "all"
"""


class OpenSmtpd:
    """A running OpenSMTPD; needs root.

    Mail comes in at ``address``. All of it ends in one mailbox, whoever it is for, or with ``route`` is sent on to
    that address. ``options`` are further lines of smtpd.conf(5), ``listener`` further words of its line "listen on".
    ``configuration`` is a whole smtpd.conf, which listens at ``address`` and delivers into the maildir ``/mail``.

    It offers no STARTTLS: every handshake of version 6.8 as a server fails with OpenSSL 3 (OpenSMTPD's issue 1171).
    As a client it uses it where it is offered.
    """

    def __init__(
        self,
        *options: str,
        route: TcpAddress | None = None,
        listener: str = "",
        configuration: str | None = None,
        address: TcpAddress | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-opensmtpd-"))
        self.folder.chmod(0o755)
        self.address = address or TcpAddress(host, free_port(host))
        chroot = Chroot(self.folder / "root", unpacked=["usr/sbin", "usr/libexec"], users=["opensmtpd", "opensmtpq"])
        chroot.make("var/lib/opensmtpd/empty")
        # Or it would ask name servers for the names of those that send it mail.
        chroot.write("etc/resolv.conf", "lookup file\n")
        self._mailbox = Maildir(chroot.make("mail", NOBODY))
        chroot.write(
            "etc/smtpd.conf",
            configuration
            or _CONFIGURATION.format(
                host=host,
                port=self.address.port,
                options="\n".join(options),
                listener=listener,
                action='action "all" maildir "/mail" virtual { "@" = nobody }'
                if route is None
                else f'action "all" relay host smtp://{route} helo mx.example.test',
            ),
        )
        self._program = chroot.start(["/usr/sbin/smtpd", "-d"], output=self.folder / "output")
        try:
            self._program.wait_until(lambda: accepts((host, self.address.port)), "OpenSMTPD to accept connections")
        except BaseException:
            self.stop()
            raise

    def messages(self) -> list[bytes]:
        """Return what was delivered; OpenSMTPD adds Return-Path, Delivered-To and Received on top."""
        return self._mailbox.messages()

    def wait_for_messages(self, number: int, *, seconds: float = 30) -> list[bytes]:
        """Return what was delivered once there are as many messages as ``number``."""
        return self._mailbox.wait_for_messages(number, self._program, seconds=seconds)

    def log(self) -> str:
        """Return what it has logged."""
        return self._program.text()

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
