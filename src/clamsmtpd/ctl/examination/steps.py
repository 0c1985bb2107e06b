"""The steps of an examination, and what many of them say."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clamsmtpd.ctl.output import Status
from clamsmtpd.ctl.rights import Access, group_name, user_name

__all__ = ["RESTART", "State", "Step", "admission", "status_of"]

#: What makes the daemon take up rights and settings.
RESTART = "systemctl restart clamsmtpd"


class State(enum.Enum):
    """How a step went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was looked at, what was found, and what would mend it.

    ``unreachable``: the daemon itself could not be reached.
    """

    name: str
    state: State
    finding: str
    mend: str = ""
    unreachable: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Tell all of it, for JSON."""
        return {"name": self.name, "state": self.state.value, "finding": self.finding, "mend": self.mend}


def status_of(steps: Iterable[Step]) -> Status:
    """Return the exit status that says how these went."""
    steps = tuple(steps)
    if any(step.unreachable for step in steps):
        return Status.UNREACHABLE
    return Status.FAILED if any(step.state is State.FAILED for step in steps) else Status.OK


def admission(access: Access, setting: str) -> tuple[str, str]:
    """Return why a socket may not be used, and what would help; ``setting`` says how its owner opens it."""
    who, stopped = access
    if stopped is None:
        return f"user {who} may not connect", "the modes allow it; see AppArmor, SELinux and access control lists"
    entry = stopped.entry
    owner = f"{user_name(entry.uid)}:{group_name(entry.gid)} {entry.mode & 0o7777:04o}"
    what = "go through" if stopped.needed == "x" else "connect to"
    finding = f"user {who} may not {what} {entry.path} ({owner})"
    if stopped.group_may and entry.gid != 0:
        return finding, f"usermod -aG {group_name(entry.gid)} {who} && {RESTART}"
    if stopped.needed == "x":
        return finding, f"chmod o+x {entry.path}"
    return finding, setting
