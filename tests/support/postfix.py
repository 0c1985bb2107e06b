"""A Postfix of our own: its settings, queue and mailbox are in one folder, its programs are the system's."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress
from tests.support.maildir import NOBODY, Maildir
from tests.support.process import Program, accepts, free_port

__all__ = ["Postfix"]

_PROGRAMS = Path("/usr/lib/postfix/sbin")

#: Queue folders that belong to Postfix alone, and those where its group of programs that hand in mail may write.
_PRIVATE = (
    "active",
    "bounce",
    "corrupt",
    "defer",
    "deferred",
    "flush",
    "hold",
    "incoming",
    "private",
    "saved",
    "trace",
)

_SERVICES = """
cleanup   unix       n - n - 0     cleanup
qmgr      unix       n - n 300 1   qmgr
rewrite   unix       - - n - -     trivial-rewrite
bounce    unix       - - n - 0     bounce
defer     unix       - - n - 0     bounce
trace     unix       - - n - 0     bounce
verify    unix       - - n - 1     verify
proxymap  unix       - - n - -     proxymap
smtp      unix       - - n - -     smtp
lmtp      unix       - - n - -     lmtp
error     unix       - - n - -     error
retry     unix       - - n - -     error
virtual   unix       - n n - -     virtual
anvil     unix       - - n - 1     anvil
tlsmgr    unix       - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1     postlogd
"""

_SCAN = """
scan      unix       - - n - 10    smtp
  -o smtp_send_xforward_command=yes
  -o disable_mime_output_conversion=yes
"""


class Postfix:
    """A running Postfix; needs root, as its master does.

    Mail comes in at ``address``. All of it ends in one mailbox, whoever it is for.

    ``content_filter`` is the port that queued mail is sent to (after-queue filter), ``proxy_filter`` the port
    that mail passes before it is queued (before-queue filter). What comes back to ``reinjection`` is filtered
    no more; XFORWARD and XCLIENT are taken there. ``settings`` are further ones of main.cf, ``reinjection_settings``
    those of that one service in master.cf.

    ``main`` is put behind its own main.cf. ``master`` are services for master.cf, in place of the one at
    ``reinjection`` and of the one that sends to a filter, and of that at ``address`` if it has one there.
    """

    def __init__(
        self,
        *,
        content_filter: int | None = None,
        proxy_filter: int | None = None,
        settings: Mapping[str, str] | None = None,
        reinjection_settings: Mapping[str, str] | None = None,
        main: str = "",
        master: str | None = None,
        address: TcpAddress | None = None,
        reinjection: TcpAddress | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-postfix-"))
        self.folder.chmod(0o755)
        self.address = address or TcpAddress(host, free_port(host))
        self.reinjection = reinjection or TcpAddress(host, free_port(host))
        self._mailbox = Maildir(self.folder / "mail" / "box")
        self._make_folders()
        before: list[str] = []
        if content_filter is not None:
            before.append(f"content_filter=scan:[127.0.0.1]:{content_filter}")
        if proxy_filter is not None:
            before.append(f"smtpd_proxy_filter=127.0.0.1:{proxy_filter}")
        after = {
            "content_filter": "",
            "smtpd_proxy_filter": "",
            "receive_override_options": "no_unknown_recipient_checks,no_header_body_checks,no_milters",
            "smtpd_authorized_xforward_hosts": "127.0.0.0/8",
            "smtpd_authorized_xclient_hosts": "127.0.0.0/8",
            **(reinjection_settings or {}),
        }
        configuration = self.folder / "etc"
        (configuration / "main.cf").write_text(self._main(settings or {}) + main)
        if master is None:
            master = _service(self.reinjection, [f"{name}={value}" for name, value in after.items()]) + _SCAN
        if f"{self.address} inet" not in master:
            master = _service(self.address, before) + master
        (configuration / "master.cf").write_text(master + _SERVICES)
        self._program = Program(
            # -d: stay in the foreground. "postfix start" would check, and complain of, the system's own folders.
            [str(_PROGRAMS / "master"), "-c", str(configuration), "-d"],
            output=self.folder / "output",
        )
        try:
            self._program.wait_until(
                lambda: all(accepts((place.host or "", place.port)) for place in (self.address, self.reinjection)),
                "Postfix to accept connections",
            )
        except BaseException:
            self.stop()
            raise

    def _make_folders(self) -> None:
        owner, group = pwd.getpwnam("postfix").pw_uid, grp.getgrnam("postdrop").gr_gid
        queue = self.folder / "queue"
        for folder in (queue, queue / "pid", self.folder / "etc"):
            folder.mkdir()
        for name in _PRIVATE:
            _folder(queue / name, 0o700, owner)
        _folder(queue / "public", 0o710, owner, group)
        _folder(queue / "maildrop", 0o1730, owner, group)
        _folder(self.folder / "data", 0o700, owner)
        _folder(self.folder / "mail", 0o700, NOBODY, NOBODY)

    def _main(self, settings: Mapping[str, str]) -> str:
        own = {
            "compatibility_level": "3.6",
            "queue_directory": str(self.folder / "queue"),
            "data_directory": str(self.folder / "data"),
            "maillog_file": str(self.folder / "log"),
            "maillog_file_prefixes": str(self.folder),
            "inet_interfaces": "loopback-only",
            "inet_protocols": "all",
            "myhostname": "mx.example.test",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8 [::1]/128",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "message_size_limit": "104857600",
            "mailbox_size_limit": "0",
            "virtual_mailbox_limit": "0",
            # XFORWARD and XCLIENT name clients whose names nobody can look up here.
            "smtpd_peername_lookup": "no",
            "smtp_dns_support_level": "disabled",
            "alias_maps": "",
            "virtual_mailbox_domains": "static:all",
            "virtual_mailbox_maps": "static:box/",
            "virtual_mailbox_base": str(self.folder / "mail"),
            "virtual_uid_maps": f"static:{NOBODY}",
            "virtual_gid_maps": f"static:{NOBODY}",
            # A filter that failed is tried again while a test can wait for it.
            "minimal_backoff_time": "1s",
            "maximal_backoff_time": "1s",
            "queue_run_delay": "1s",
            **settings,
        }
        return "".join(f"{name} = {value}\n" for name, value in own.items())

    def messages(self) -> list[bytes]:
        """Return what was delivered; Postfix adds Return-Path, X-Original-To and Delivered-To on top."""
        return self._mailbox.messages()

    def wait_for_messages(self, number: int, *, seconds: float = 30) -> list[bytes]:
        """Return what was delivered once there are as many messages as ``number``."""
        return self._mailbox.wait_for_messages(number, self._program, seconds=seconds)

    def log(self) -> str:
        """Return its mail log."""
        log = self.folder / "log"
        return log.read_text(encoding="utf-8", errors="backslashreplace") if log.exists() else ""

    def wait_for_log(self, text: str, *, seconds: float = 30) -> None:
        """Return as soon as ``text`` is in the log."""
        self._program.wait_until(lambda: text in self.log(), f"{text!r} in Postfix's log", seconds=seconds)

    def children(self, name: str) -> list[int]:
        """Return its processes that run the program of that name, such as smtpd."""
        pids = Path(f"/proc/{self._program.pid}/task/{self._program.pid}/children").read_text(encoding="ascii").split()
        return [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == name]

    def queued(self) -> int:
        """Return how many messages it has taken and not yet got rid of."""
        queues = ("incoming", "active", "deferred", "hold", "maildrop")
        return sum(len(files) for name in queues for _, _, files in os.walk(self.folder / "queue" / name))

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


def _folder(path: Path, mode: int, owner: int, group: int = 0) -> None:
    path.mkdir()
    os.chown(path, owner, group)
    # After chown, and not by mkdir: the process's umask has no say in it.
    path.chmod(mode)


def _service(place: TcpAddress, options: Sequence[str]) -> str:
    # A blank inside an option would end it; braces keep it together (master(5)).
    lines = "".join(f"  -o {{ {option} }}\n" for option in options)
    return f"{place} inet n - n - - smtpd\n{lines}"
