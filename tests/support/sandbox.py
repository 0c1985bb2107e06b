"""What a unit's sandbox forbids, by the same means of the kernel that systemd uses, for a program that is no service.

``python -m tests.support.sandbox UNIT COMMAND…`` becomes the command, with those system calls and address families that
the unit allows, without new privileges, and without memory that is made executable.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

__all__ = ["UNIT", "allowed_calls", "sandboxed"]

UNIT = Path(__file__).parents[2] / "packaging" / "clamsmtpd.service"

# linux/prctl.h, seccomp.h
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_EQUAL = 4


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


def sandboxed() -> list[str]:
    """Return the beginning of a command that runs in the sandbox of our unit."""
    return [sys.executable, "-m", "tests.support.sandbox", str(UNIT)]


def settings(unit: Path, name: str) -> list[str]:
    """Return the values of all lines of one setting in a unit."""
    lines = [line.partition("=") for line in unit.read_text().splitlines()]
    return [value for key, _, value in lines if key == name]


def allowed_calls(unit: Path) -> set[str]:
    """Return the names of the system calls that the lines of SystemCallFilter in a unit allow."""
    allowed: set[str] = set()
    for line in settings(unit, "SystemCallFilter"):
        calls = set().union(*(_expand(word) for word in line.removeprefix("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return allowed


def _expand(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    shown = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True)
    inside = [line.strip() for line in shown.stdout.splitlines()[1:]]
    return set().union(*(_expand(line) for line in inside if line and not line.startswith("#")))


def _enter(unit: Path) -> None:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_REFUSE)))
    families = [int(getattr(socket, name)) for name in settings(unit, "RestrictAddressFamilies")[0].split()]
    # execve is among them; prctl as well, but what it has set stays.
    for name in allowed_calls(unit):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue
        if name != "socket":
            library.seccomp_rule_add_array(context, _ALLOW, number, 0, None)
            continue
        for family in families:
            only = _Comparison(0, _EQUAL, family, 0)
            library.seccomp_rule_add_array(context, _ALLOW, number, 1, ctypes.byref(only))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or library.seccomp_load(context):
        raise OSError("seccomp cannot be set up here")
    # Kernels before 6.3 do not know it.
    libc.prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)


if __name__ == "__main__":
    _enter(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
