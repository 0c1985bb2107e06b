"""An Exim of our own, unpacked beside the system: Debian's mail servers cannot be installed together."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress
from tests.support.maildir import NOBODY, Maildir
from tests.support.process import Program, accepts, free_port

__all__ = ["Exim"]

#: Where scripts/setup unpacks packages.
_ROOT = Path(__file__).resolve().parents[2] / ".build" / "root"

_CONFIGURATION = """
primary_hostname = mx.example.test
spool_directory = {folder}/spool
log_file_path = {folder}/spool/%slog
pid_file_path = {folder}/spool/pid
local_interfaces = <; {host}
daemon_smtp_ports = {port}
keep_environment = LD_PRELOAD : ^NSS_WRAPPER_
deliver_drop_privilege = true
never_users =
host_lookup =
tls_advertise_hosts =
message_size_limit = 100M
pipelining_advertise_hosts = *
{options}
acl_smtp_rcpt = accept
acl_smtp_data = accept

begin routers
all:
  driver = accept
  transport = mailbox

begin transports
mailbox:
  driver = appendfile
  directory = {folder}/mail
  maildir_format
  create_directory
"""


class Exim:
    """A running Exim. Mail comes in at ``address``, and all of it ends in one mailbox.

    ``options`` are further lines of the main section of its configuration. It runs as whoever runs the tests,
    or as nobody if that is root.
    """

    def __init__(self, *options: str, host: str = "127.0.0.1") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-exim-"))
        self.folder.chmod(0o755)
        self.address = TcpAddress(host, free_port(host))
        self._mailbox = Maildir(self.folder / "mail")
        for name in ("spool", "mail"):
            folder = self.folder / name
            folder.mkdir()
            if os.geteuid() == 0:
                os.chown(folder, NOBODY, NOBODY)
        configuration = self.folder / "exim.conf"
        configuration.write_text(
            _CONFIGURATION.format(folder=self.folder, host=host, port=self.address.port, options="\n".join(options))
        )
        self._program = Program(
            [str(self._private_copy()), "-C", str(configuration), "-bdf"],
            output=self.folder / "output",
            environment=self._user_database(),
        )
        try:
            self._program.wait_until(lambda: accepts((host, self.address.port)), "Exim to accept connections")
        except BaseException:
            self.stop()
            raise

    def _private_copy(self) -> Path:
        """Copy the program without its setuid bit: that would make the loader ignore LD_PRELOAD."""
        program = self.folder / "exim4"
        shutil.copyfile(_ROOT / "usr" / "sbin" / "exim4", program)
        program.chmod(0o755)
        return program

    def _user_database(self) -> dict[str, str]:
        """Give Exim the user Debian-exim, without which it does not start, and spare the system that user."""
        user, group = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        users = [f"{user_.pw_name}:x:{user_.pw_uid}:{user_.pw_gid}::/:/bin/false" for user_ in pwd.getpwall()]
        groups = [f"{group_.gr_name}:x:{group_.gr_gid}:" for group_ in grp.getgrall()]
        (self.folder / "passwd").write_text("\n".join([*users, f"Debian-exim:x:{user}:{group}::/:/bin/false", ""]))
        (self.folder / "group").write_text("\n".join([*groups, f"Debian-exim:x:{group}:", ""]))
        (wrapper,) = (_ROOT / "usr" / "lib").glob("*/libnss_wrapper.so")
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
