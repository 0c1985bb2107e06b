"""An Exim of our own, unpacked beside the system: Debian's mail servers cannot be installed together."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress
from tests.support.certificates import Certificate
from tests.support.maildir import NOBODY, Maildir
from tests.support.process import Program, accepts, free_port
from tests.support.unpacked import UNPACKED

__all__ = ["EVERY_EXTENSION", "Exim"]

#: Options with which it offers all that it can but STARTTLS, for which it needs a certificate.
EVERY_EXTENSION = (
    "chunking_advertise_hosts = *",
    "smtputf8_advertise_hosts = *",
    "dsn_advertise_hosts = *",
    "prdr_enable = true",
    "acl_smtp_etrn = accept",
    "acl_smtp_vrfy = accept",
    "acl_smtp_expn = accept",
)

_CONFIGURATION = """
primary_hostname = mx.example.test
spool_directory = {folder}/spool
log_file_path = {folder}/spool/%slog
pid_file_path = {folder}/spool/pid
{interfaces}
keep_environment = LD_PRELOAD : ^NSS_WRAPPER_
deliver_drop_privilege = true
never_users =
host_lookup =
tls_advertise_hosts = {tls}
message_size_limit = 100M
pipelining_advertise_hosts = *
{options}
acl_smtp_rcpt = accept
acl_smtp_data = accept

begin routers
{first_router}
all:
{router}

begin transports
{first_transport}
mailbox:
  driver = appendfile
  directory = {folder}/mail
  maildir_format
  create_directory
onward:
  driver = smtp
{transport}

begin retry
* * F,1m,1s
"""

_TO_THE_MAILBOX = """
  driver = accept
  transport = mailbox
"""

# Not ";" between hosts, which is between rules, nor ":", which is in the addresses of IPv6. "self" lets it send to
# this very machine.
_ONWARD = """
  driver = manualroute
  route_list = * "<+ {host}" byname
  transport = onward
  self = send
"""


class Exim:
    """A running Exim. Mail comes in at ``address``, and all of it ends in one mailbox.

    With ``route`` it is a client instead: all mail is sent on to that address, in a pipeline, in chunks and with PRDR
    where these are offered, and what was deferred is sent again every second.
    ``options`` are further lines of the main section of its configuration, ``transport`` those of the transport that
    sends on. With ``certificate`` it offers STARTTLS. It runs as whoever runs the tests, or as nobody if that is root.

    ``interfaces``, ``first_router`` and ``first_transport`` are lines that say where it listens, in place of the port
    of ``address`` alone, and a router and a transport in front of its own.
    """

    def __init__(
        self,
        *options: str,
        route: TcpAddress | None = None,
        transport: Sequence[str] = (),
        certificate: Certificate | None = None,
        interfaces: str = "",
        first_router: str = "",
        first_transport: str = "",
        address: TcpAddress | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-exim-"))
        self.folder.chmod(0o755)
        self.address = address or TcpAddress(host, free_port(host))
        self._mailbox = Maildir(self.folder / "mail")
        for name in ("spool", "mail"):
            folder = self.folder / name
            folder.mkdir()
            if os.geteuid() == 0:
                os.chown(folder, NOBODY, NOBODY)
        configuration = self.folder / "exim.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                folder=self.folder,
                interfaces=interfaces or f"local_interfaces = <; {host}\ndaemon_smtp_ports = {self.address.port}",
                first_router=first_router,
                first_transport=first_transport,
                tls="*" if certificate else "",
                options="\n".join([*self._tls(certificate), *options]),
                router=_TO_THE_MAILBOX if route is None else _ONWARD.format(host=route.host),
                transport="\n".join(
                    f"  {line}" for line in ([f"port = {route.port}"] if route else []) + list(transport)
                ),
            )
        )
        self._program = Program(
            [str(self._private_copy()), "-C", str(configuration), "-bdf", "-q1s"],
            output=self.folder / "output",
            environment=self._user_database(),
        )
        try:
            self._program.wait_until(lambda: accepts((host, self.address.port)), "Exim to accept connections")
        except BaseException:
            self.stop()
            raise

    def _tls(self, certificate: Certificate | None) -> list[str]:
        """Copy the certificate to where the user that Exim runs as may read it; return the options that name it."""
        if certificate is None:
            return []
        lines = []
        for option, original in (("tls_certificate", certificate.certificate), ("tls_privatekey", certificate.key)):
            copy = self.folder / option
            shutil.copyfile(original, copy)
            copy.chmod(0o600)
            if os.geteuid() == 0:
                os.chown(copy, NOBODY, NOBODY)
            lines.append(f"{option} = {copy}")
        return lines

    def _private_copy(self) -> Path:
        """Copy the program without its setuid bit: that would make the loader ignore LD_PRELOAD."""
        program = self.folder / "exim4"
        shutil.copyfile(UNPACKED / "usr" / "sbin" / "exim4", program)
        program.chmod(0o755)
        return program

    def _user_database(self) -> dict[str, str]:
        """Give Exim the user Debian-exim, without which it does not start, and spare the system that user."""
        user, group = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        users = [f"{user_.pw_name}:x:{user_.pw_uid}:{user_.pw_gid}::/:/bin/false" for user_ in pwd.getpwall()]
        groups = [f"{group_.gr_name}:x:{group_.gr_gid}:" for group_ in grp.getgrall()]
        (self.folder / "passwd").write_text("\n".join([*users, f"Debian-exim:x:{user}:{group}::/:/bin/false", ""]))
        (self.folder / "group").write_text("\n".join([*groups, f"Debian-exim:x:{group}:", ""]))
        (wrapper,) = (UNPACKED / "usr" / "lib").glob("*/libnss_wrapper.so")
        return {
            "LD_PRELOAD": str(wrapper),
            "NSS_WRAPPER_PASSWD": str(self.folder / "passwd"),
            "NSS_WRAPPER_GROUP": str(self.folder / "group"),
        }

    def messages(self) -> list[bytes]:
        """Return what was delivered; Exim adds a Received field on top."""
        return self._mailbox.messages()

    def wait_for_messages(self, number: int, *, seconds: float = 30) -> list[bytes]:
        """Return what was delivered once there are as many messages as ``number``."""
        return self._mailbox.wait_for_messages(number, self._program, seconds=seconds)

    def log(self) -> str:
        """Return its main log."""
        log = self.folder / "spool" / "mainlog"
        return log.read_text(encoding="utf-8", errors="backslashreplace") if log.exists() else ""

    def wait_for_log(self, text: str, *, seconds: float = 30) -> None:
        """Return as soon as ``text`` is in the main log."""
        self._program.wait_until(lambda: text in self.log(), f"{text!r} in Exim's log", seconds=seconds)

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
