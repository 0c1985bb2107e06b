"""Debian's journald, in a mount namespace of its own: there it has the places that the system's would have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.process import Program, wait_until

__all__ = ["Journald", "why_not"]

_JOURNALD = "/lib/systemd/systemd-journald"

# An instance for a namespace (systemd-journald@.service) does not read what the kernel says.
_NAME = "clamsmtpd-test"

_SCRIPT = f"""
set -e
mount -t tmpfs tmpfs /run
[ ! -d /var/log/journal ] || mount -t tmpfs tmpfs /var/log/journal
mkdir -p /run/systemd/journal.{_NAME} /run/systemd/journal "/run/log/journal/$(cat /etc/machine-id).{_NAME}"
mount --bind /run/systemd/journal.{_NAME} /run/systemd/journal
exec {_JOURNALD} {_NAME}
"""


@cache
def why_not() -> str:
    """Say why there can be none here; nothing if there can."""
    if not os.path.exists(_JOURNALD):
        return "there is no systemd-journald"
    if not Path("/etc/machine-id").is_file() or not Path("/etc/machine-id").read_text().strip():
        return "this machine has no id (machine-id(5))"
    if not any(Path("/sys/fs/cgroup", name).exists() for name in ("cgroup.controllers", "systemd", "unified")):
        return "there are no control groups, by which it knows who has said what"
    tried = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        check=False,
        capture_output=True,
        text=True,
    )
    return tried.stderr.strip()


class Journald:
    """A running journald. ``wrapper`` is the beginning of the command of whoever is to see it as the system's."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-journald-"))
        self._program = Program(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT], output=self._folder / "log"
        )
        root = Path(f"/proc/{self._program.pid}/root/run/systemd/journal/socket")
        try:
            self._program.wait_until(root.exists, "journald to take datagrams")
        except BaseException:
            self.stop()
            raise

    @property
    def wrapper(self) -> Sequence[str]:
        return ("nsenter", "--target", str(self._program.pid), "--mount", f"--wd={os.getcwd()}")

    def journalctl(self, *arguments: str) -> str:
        """Return the lines of clamsmtpd, as printed."""
        command = ["journalctl", "--namespace", _NAME, "--no-pager", "-t", "clamsmtpd", *arguments]
        return subprocess.run([*self.wrapper, *command], check=True, capture_output=True, text=True).stdout

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries of clamsmtpd."""
        return [json.loads(line) for line in self.journalctl("-o", "json").splitlines()]

    def wait_for(self, event: str, *, number: int = 1) -> list[dict[str, Any]]:
        """Return the entries of an event, as soon as there are so many."""

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.entries() if entry.get("CLAMSMTPD_EVENT") == event]

        wait_until(lambda: len(found()) >= number, f"{event} in the journal")
        return found()

    def stop(self) -> None:
        self._program.stop()
        shutil.rmtree(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
