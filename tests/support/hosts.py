"""Three hosts in a row, each a network namespace: a client, a router, and a server that only the router leads to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from tests.support.process import Program

__all__ = ["Hosts", "Inside"]

#: Starts a program inside the host of that name.
Inside = Callable[..., Program]


def _sh(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class Hosts:
    """Namespaces client, router and server in a row: 10.77.1.2 - 10.77.1.1|10.77.2.1 - 10.77.2.2, and IPv6 alike."""

    def __init__(self) -> None:
        tag = f"c{os.getpid() % 100_000}"
        self.client, self.router, self.server = (f"{tag}{name}" for name in "crs")

    def build(self) -> None:
        for name in (self.client, self.router, self.server):
            _sh("ip", "netns", "add", name)
            _sh("ip", "-n", name, "link", "set", "lo", "up")
        for number, end in ((1, self.client), (2, self.server)):
            inside, outside = f"v{number}", f"r{number}"
            _sh("ip", "-n", self.router, "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", end)
            for name, device, host in ((self.router, outside, 1), (end, inside, 2)):
                _sh("ip", "-n", name, "addr", "add", f"10.77.{number}.{host}/24", "dev", device)
                _sh("ip", "-n", name, "addr", "add", f"fd77:{number}::{host}/64", "dev", device, "nodad")
                _sh("ip", "-n", name, "link", "set", device, "up")
            _sh("ip", "-n", end, "route", "add", "default", "via", f"10.77.{number}.1")
            _sh("ip", "-n", end, "route", "add", "default", "via", f"fd77:{number}::1")
        for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            _sh("ip", "netns", "exec", self.router, "sysctl", "-q", "-w", setting)

    def redirect(self, rules: str) -> None:
        run = subprocess.run(
            ["ip", "netns", "exec", self.router, "nft", "-f", "-"],
            input=rules.encode(),
            capture_output=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr

    def tear_down(self) -> None:
        for name in (self.client, self.router, self.server):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
