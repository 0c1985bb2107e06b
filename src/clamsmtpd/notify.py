"""What a service manager wants to hear of us (sd_notify(3)), and how often (sd_watchdog_enabled(3)).

A datagram for each word: no library that is kept up does more for us than that.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

from clamsmtpd.log import describe, escape

__all__ = ["Notifier"]

_log = logging.getLogger("clamsmtpd")

#: Seconds that one word may take. The service manager reads them as they come; were it stopped, we would go on.
_LIMIT = 0.5


class Notifier:
    """Tells the service manager that ``environment`` names, and takes the variables that do out of it.

    Without one, nothing is told and no watchdog waits.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        # "@" stands for the zero octet in front of an abstract name.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # Kept open: with as many clients as there are descriptors, the watchdog would not hear of us for want of one.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        microseconds, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        #: Seconds within which it wants to hear that we are alive; None for a manager that does not ask.
        self.watchdog: float | None = None
        if self._address and pid in ("", str(os.getpid())) and microseconds.isascii() and microseconds.isdigit():
            self.watchdog = int(microseconds) / 1e6 or None

    def __bool__(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._address)

    def ready(self) -> None:
        """Say that we serve, and that all we need can be used; or that a reload is over."""
        # By its number, the manager knows a daemon that has left the process it started.
        self._tell("READY=1", f"MAINPID={os.getpid()}", "STATUS=ready")

    def reloading(self) -> None:
        """Say that the settings are being read again; :meth:`ready` ends that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def waiting(self, what: str) -> None:
        """Say what keeps us from being ready."""
        self._tell(f"STATUS=waiting for {escape(what)}")

    def alive(self) -> None:
        """Say that we are."""
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that we have begun to stop."""
        self._tell("STOPPING=1", "STATUS=finishing what is in flight")

    def close(self) -> None:
        """Tell nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *assignments: str) -> None:
        if self._socket is None:
            return
        try:
            # Never connected: a manager that was started anew listens at the same address.
            self._socket.settimeout(_LIMIT)
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            _log.warning("cannot notify the service manager of %s: %s", assignments[0], describe(error))
