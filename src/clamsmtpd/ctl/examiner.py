"""The whole way of mail tried for real: each step looks at one thing and is told as soon as it is done."""

from __future__ import annotations

import os
import pwd
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from clamsmtpd.config import Settings
from clamsmtpd.ctl.asuser import as_user
from clamsmtpd.ctl.clamdconf import parse_clamd_conf
from clamsmtpd.ctl.daemon import DaemonError, ask
from clamsmtpd.ctl.examination.daemon import judge_admin, judge_listener
from clamsmtpd.ctl.examination.messages import (
    action_on,
    clean_message,
    infected_message,
    judge_clean,
    judge_infected,
)
from clamsmtpd.ctl.examination.nexthop import judge_next_hop
from clamsmtpd.ctl.examination.scanner import judge_scanner
from clamsmtpd.ctl.examination.steps import State, Step
from clamsmtpd.ctl.findings import Level
from clamsmtpd.ctl.looks import (
    NextHopLook,
    ScannerLook,
    connectable,
    deliver,
    look_at_listener,
    look_at_next_hop,
    look_at_scanner,
)
from clamsmtpd.ctl.machine import begin, place_check, start
from clamsmtpd.ctl.rights import Access, barrier, entries, user_name
from clamsmtpd.values import Address, Listen, NextHop, TcpAddress, UnixAddress

__all__ = ["Examiner"]

#: Seconds for the daemon to look at all that it needs, and to answer.
ADMIN_LIMIT = 20.0

# What clamd calls the test file by its official signatures; only which of them a rule is for depends on it.
_EICAR_NAME = "Eicar-Signature"


@dataclass(slots=True)
class Examiner:
    """Looks at all that mail passes with ``settings``, which were read from ``path`` with these ``warnings``.

    ``recipient`` gets the messages; None: none are sent. ``clamd_conf`` is where clamd of this host has its settings.
    """

    settings: Settings
    path: str
    warnings: tuple[str, ...] = ()
    clamd_conf: str = ""
    recipient: str | None = None
    sender: str = ""
    #: What is known of the next hop once it was looked at; None where each client has its own.
    hop: NextHopLook | None = None
    _user: str | None = None
    _virus: str = _EICAR_NAME
    _sound: list[Listen] = field(default_factory=list)

    def steps(self) -> Iterator[Step]:
        """Yield the steps, each when it is done."""
        yield self._settings()
        self._user = self.settings.user or _owner_of(self.settings.pid_file)
        yield from self._rights()
        yield self._place()
        for address in self.settings.clam_addresses:
            yield from self._scanner(address)
        yield from self._next_hop()
        for listen in self.settings.listen:
            yield self._listener(listen)
        if self.settings.admin is not None:
            yield self._admin(self.settings.admin)
        yield from self._messages()

    # ---- before anything is asked -------------------------------------------------------------

    def _settings(self) -> Step:
        name = f"settings {self.path}"
        # TempDirectory has a step of its own.
        found = [finding for finding in start(self.settings) if finding.setting != "temp_directory"]
        if errors := [finding.text for finding in found if finding.level is Level.ERROR]:
            return Step(name, State.FAILED, *_split(errors[0]))
        if warnings := [*self.warnings, *(finding.text for finding in found)]:
            return Step(name, State.WARNING, f"they load, with warnings: {warnings[0]}", "clamsmtpctl check tells all")
        return Step(name, State.OK, "they load")

    def _rights(self) -> Iterator[Step]:
        own = user_name(os.geteuid())
        if os.geteuid() != 0 and self._user not in {None, own, str(os.geteuid())}:
            yield Step(
                f"user {self._user}",
                State.WARNING,
                f"what follows is seen as user {own}, who may have other rights than the daemon",
                "run this as root: what the daemon uses is then tried with its rights",
            )
        elif os.geteuid() == 0 and self._user is not None:
            yield Step(f"user {self._user}", State.OK, "what the daemon uses is tried with the rights of its user")

    def _place(self) -> Step:
        path = self.settings.temp_directory
        name = f"TempDirectory {path}"
        trouble, warnings = place_check(replace(self.settings, user=self._user))
        if trouble:
            finding, mend = _split(trouble)
            if not os.path.isdir(path) or "cannot write" in trouble:
                mend = f"install -d -o {self._user or user_name(os.geteuid())} -m 0750 {path}"
            return Step(name, State.FAILED, finding.removeprefix("TempDirectory: "), mend)
        if warnings:
            return Step(name, State.WARNING, warnings[0].removeprefix("TempDirectory: "), f"chmod g-w {path}")
        return Step(name, State.OK, "the daemon may write there, and nobody else can replace what it writes")

    # ---- on the way ---------------------------------------------------------------------------

    def _access(self, address: Address) -> Access:
        """Return who the daemon is, and what stops it on the way to a unix socket."""
        try:
            found = pwd.getpwnam(self._user) if self._user and os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
            uid, gid, name = found.pw_uid, found.pw_gid, found.pw_name
            groups = set(os.getgrouplist(name, gid)) if os.geteuid() == 0 else {os.getegid(), *os.getgroups()}
        except KeyError:
            uid, name, groups = os.geteuid(), str(os.geteuid()), {os.getegid(), *os.getgroups()}
        if not isinstance(address, UnixAddress):
            return Access(name)
        return Access(name, barrier(entries(address.path), uid, frozenset(groups)))

    def _scanner(self, address: Address) -> Iterator[Step]:
        look = ScannerLook(**as_user(self._user, lambda: look_at_scanner(address, self.settings.temp_directory)))
        if look.infected.startswith("infected:"):
            self._virus = look.infected.removeprefix("infected:")
        yield from judge_scanner(
            address,
            look,
            access=self._access(address),
            clamd=self._clamd(),
            now=datetime.now(),  # noqa: DTZ005
        )

    def _clamd(self) -> list[Address]:
        """Return where the clamd of this host listens, by its own settings."""
        try:
            with open(self.clamd_conf, encoding="utf-8", errors="replace") as file:
                found = parse_clamd_conf(file.read())
        except OSError:
            return []
        places: list[Address] = []
        if found.local_socket is not None:
            places.append(UnixAddress(found.local_socket))
        if found.tcp_port is not None:
            places += [TcpAddress(host, found.tcp_port) for host in found.tcp_addresses or ("127.0.0.1",)]
        return places

    def _next_hop(self) -> Iterator[Step]:
        hop = self.settings.out_address
        if hop is None:
            yield Step("next hop", State.SKIPPED, "with TransparentProxy each client's mail has its own")
            return
        if isinstance(hop.address, TcpAddress) and hop.address.host is None:
            # As for a client of this host.
            hop = NextHop(TcpAddress("127.0.0.1", hop.address.port), lmtp=hop.lmtp)
        there = hop
        look = NextHopLook(**as_user(self._user, lambda: look_at_next_hop(there, self.settings.out_tls)))
        self.hop = look
        yield from judge_next_hop(self.settings, hop, look, access=self._access(hop.address))

    def _listener(self, listen: Listen) -> Step:
        step = judge_listener(
            self.settings, listen, look_at_listener(listen, proxied=self._is_proxied(listen)), self.hop
        )
        if step.state in {State.OK, State.WARNING}:
            self._sound.append(listen)
        return step

    def _is_proxied(self, listen: Listen) -> bool:
        """Whether the daemon takes us for a proxy there, which has to say so first."""
        if not self.settings.proxy_protocol:
            return False
        trusted, address = self.settings.trusted_clients, connectable(listen.address)
        if isinstance(address, UnixAddress):
            return address.path in trusted.sockets
        try:
            return trusted.include(address.host or "")
        except ValueError:
            return False

    def _admin(self, admin: Listen) -> Step:
        mode: int | None = None
        if isinstance(admin.address, UnixAddress) and os.path.exists(admin.address.path):
            mode = stat.S_IMODE(os.stat(admin.address.path).st_mode)
        # Each piece of an answer has its time; so has all of it, whoever answers there.
        answer = begin(lambda: _ask(admin.address))(time.monotonic() + ADMIN_LIMIT)
        status, told, fault = answer or (0, {}, "no answer in time; see who listens there, and the daemon's log")
        return judge_admin(admin.address, status, told, fault, mode)

    # ---- messages -----------------------------------------------------------------------------

    def _messages(self) -> Iterator[Step]:
        name = "two messages through the daemon"
        if self.recipient is None:
            yield Step(
                name,
                State.SKIPPED,
                "NOT TRIED: nobody has seen a virus stopped yet",
                "clamsmtpctl doctor --to ADDRESS sends a clean message and the EICAR test file to a mailbox of yours",
            )
            return
        if self.settings.transparent_proxy:
            yield Step(
                name,
                State.SKIPPED,
                "NOT TRIED: the daemon takes only what the firewall redirects",
                "send the EICAR test file from a client behind the firewall",
            )
            return
        if not self._sound:
            yield Step(name, State.SKIPPED, "NOT TRIED: the daemon cannot be reached, or serves nobody; see above")
            return
        listen = self._sound[0]
        proxied = self._is_proxied(listen)
        token = secrets.token_hex(6)
        sender, recipient, now = self.sender, self.recipient, datetime.now(UTC)
        clean = clean_message(token, sender, recipient, now)
        yield judge_clean(deliver(listen, sender, recipient, clean, proxied=proxied), token, recipient)
        infected = infected_message(token, sender, recipient, now)
        yield judge_infected(
            deliver(listen, sender, recipient, infected, proxied=proxied), action_on(self.settings, self._virus), token
        )


def _ask(address: Address) -> tuple[int, dict[str, Any], str]:
    try:
        return *ask(address, "/readyz", ADMIN_LIMIT), ""
    except DaemonError as error:
        return 0, {}, str(error)


def _owner_of(pid_file: str | None) -> str | None:
    """Return the user of the daemon that runs, by its pid file; None if that cannot be told."""
    if pid_file is None:
        return None
    try:
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read(32))
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            if b"clamsmtpd" not in command.read(4096):
                return None
        return pwd.getpwuid(os.stat(f"/proc/{pid}").st_uid).pw_name
    except (OSError, ValueError, KeyError):
        return None


def _split(text: str) -> tuple[str, str]:
    """Split one line of the daemon's into what is wrong and what would be right."""
    finding, semicolon, mend = text.rpartition("; ")
    return (finding, mend) if semicolon else (text, "")
