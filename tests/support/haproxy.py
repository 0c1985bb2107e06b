"""A HAProxy of our own, unpacked beside the system: it tells in the PROXY protocol whom it speaks for."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from clamsmtpd.values import TcpAddress
from tests.support.process import Program, free_port
from tests.support.unpacked import UNPACKED

__all__ = ["HAProxy"]

_PROGRAM = UNPACKED / "usr" / "sbin" / "haproxy"

_CONFIGURATION = """
global
  maxconn 200
  stats socket {control}
defaults
  mode tcp
  timeout connect 10s
  timeout client 60s
  timeout server 60s
"""

_RELAY = """
listen relay
  bind {address}
{options}
  server backend {backend} {sending}
"""


class HAProxy:
    """A running HAProxy. What comes in at ``address`` goes to ``backend``, with a PROXY header of ``version`` in front.

    ``server`` are further words of its line "server", ``options`` further lines of its section "listen". ``relay`` is
    another such section in place of that, which listens at ``address``.
    """

    def __init__(
        self,
        backend: TcpAddress,
        *options: str,
        version: Literal[1, 2] = 2,
        server: str = "",
        relay: str | None = None,
        address: TcpAddress | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-haproxy-"))
        self.address = address or TcpAddress(host, free_port(host))
        self._control = self.folder / "control"
        configuration = self.folder / "haproxy.cfg"
        sending = "send-proxy-v2" if version == 2 else "send-proxy"
        configuration.write_text(
            _CONFIGURATION.format(control=self._control)
            + (relay or _RELAY).format(
                address=self.address,
                backend=backend,
                sending=f"{sending} {server}",
                options="\n".join(f"  {option}" for option in options),
            )
        )
        self._program = Program([str(_PROGRAM), "-db", "-f", str(configuration)], output=self.folder / "output")
        try:
            # Not by its port: each connection there is one to the backend too.
            self._program.wait_until(self._answers, "HAProxy to answer")
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control, contextlib.suppress(OSError):
            control.settimeout(1)
            control.connect(str(self._control))
            control.sendall(b"show info\n")
            return control.recv(100).startswith(b"Name: HAProxy")
        return False

    def log(self) -> str:
        """Return what it has complained of."""
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
