"""Asking a running daemon, at the address that the setting Admin gives."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import click

from clamsmtpd.ctl.output import Status, fail, load_settings
from clamsmtpd.values import Address, TcpAddress, UnixAddress

__all__ = ["DaemonError", "admin_address", "ask", "ask_or_fail"]

#: Seconds for an answer; /readyz looks at scanners and next hop first.
LIMIT = 20.0

#: Octets of an answer. What is larger is not ours.
ANSWER_MAX = 16 * 1024 * 1024


class DaemonError(Exception):
    """The daemon cannot be asked; ``str()`` is one line that says why and what would be right."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, limit: float) -> None:
        super().__init__("localhost", timeout=limit)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def admin_address(context: click.Context) -> Address:
    """Return where the daemon tells about itself; end with one line if the settings say nothing of it."""
    admin = load_settings(context).settings.admin
    if admin is None:
        fail(
            "Admin is not set, so that the daemon cannot be asked; give Admin: /run/clamsmtp/admin in the settings "
            "file, and restart it",
            Status.UNREACHABLE,
        )
    return admin.address


def ask(address: Address, path: str, limit: float = LIMIT) -> tuple[int, dict[str, Any]]:
    """Return status code and JSON of an answer. Raises DaemonError."""
    if isinstance(address, UnixAddress):
        connection: http.client.HTTPConnection = _UnixConnection(address.path, limit)
    else:
        connection = http.client.HTTPConnection(_host(address), address.port, timeout=limit)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        text = answer.read(ANSWER_MAX)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DaemonError(f"no answer at {address} (Admin): {why}; {_mend(error)}") from None
    finally:
        connection.close()
    try:
        told = json.loads(text)
    except ValueError:
        told = {"text": text.decode("utf-8", "replace").strip()}
    if not isinstance(told, dict):
        raise DaemonError(f"what answers at {address} (Admin) is not clamsmtpd; see who listens there")
    return answer.status, told


def ask_or_fail(address: Address, path: str) -> dict[str, Any]:
    """Return the JSON of a good answer; end with one line for any other."""
    try:
        status, told = ask(address, path)
    except DaemonError as error:
        fail(str(error), Status.UNREACHABLE)
    if status != http.HTTPStatus.OK:
        fail(f"the daemon answers {status}: {told.get('text', told)}", Status.FAILED)
    if "text" in told:
        fail(f"what answers at {address} (Admin) is not clamsmtpd; see who listens there", Status.UNREACHABLE)
    return told


def _host(address: TcpAddress) -> str:
    return address.host or "127.0.0.1"


def _mend(error: Exception) -> str:
    match error:
        case PermissionError():
            return "run this as root, or as the owner of that socket"
        case FileNotFoundError() | ConnectionRefusedError():
            return "is the daemon running, and was it restarted since Admin was set?"
        case _:
            return "see who listens there, and the daemon's log"
