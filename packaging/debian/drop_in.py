#!/usr/bin/python3
"""``drop_in.py SETTINGS``: print what a settings file wants of clamsmtpd.service that the unit does not give.

The unit's sandbox is made for the settings of the package. A file that has served another daemon, without a sandbox or
from the init script, may say that mail lies elsewhere, or be for another user. What is printed is a drop-in of
systemd.unit(5), nothing if none is needed. The exit status is 1, with a line on standard error, for settings that
cannot be used at all.
"""

from __future__ import annotations

import os
import sys

from clamsmtpd.config import ConfigError, Settings, load
from clamsmtpd.values import UnixAddress

#: What the unit lets its user write to: RuntimeDirectory and ReadWritePaths.
WRITABLE = ("/run/clamsmtp", "/var/run/clamsmtp", "/var/spool/clamsmtp")

#: Those that PrivateTmp makes anew, and takes away when the daemon stops.
TEMPORARY = ("/tmp", "/var/tmp")

USER = "clamsmtp"

#: The first port that anybody may bind (ip_unprivileged_port_start, ip(7)).
FREE_PORTS = 1024


def inside(path: str, folders: tuple[str, ...]) -> bool:
    """Whether ``path`` is one of the folders or lies below one of them."""
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def folders(settings: Settings) -> list[str]:
    """Return the folders that the daemon writes to."""
    files = [settings.pid_file] if settings.pid_file else []
    sockets = [*settings.listen, *([settings.admin] if settings.admin else [])]
    files += [listen.address.path for listen in sockets if isinstance(listen.address, UnixAddress)]
    return [settings.temp_directory, *(os.path.dirname(path) for path in files)]


def additions(settings: Settings) -> list[str]:
    """Return lines for the section [Service], with the reason above each."""
    lines = []
    if settings.user not in {None, USER}:
        lines += ["# User", f"User={settings.user}"]
    if inside(settings.temp_directory, TEMPORARY) and (settings.quarantine or settings.debug_files):
        lines += ["# Quarantine and DebugFiles keep what is in TempDirectory.", "PrivateTmp=no"]
    wanted = sorted({path for path in folders(settings) if not inside(path, WRITABLE)})
    # Those for temporary files are there to be written to, PrivateTmp or not.
    wanted = [path for path in wanted if not inside(path, TEMPORARY) or "PrivateTmp=no" in lines]
    if wanted:
        lines += ["# TempDirectory, and the folders of PidFile and sockets", *(f"ReadWritePaths=-{p}" for p in wanted)]
    if settings.transparent_proxy or any(
        not isinstance(listen.address, UnixAddress) and listen.address.port < FREE_PORTS for listen in settings.listen
    ):
        right = "CAP_NET_BIND_SERVICE"
        lines += ["# A port below 1024, or TransparentProxy"]
        lines += [f"CapabilityBoundingSet={right}", f"AmbientCapabilities={right}", "PrivateUsers=no"]
    return lines


def main(path: str) -> int:
    """Print the drop-in; return the exit status."""
    try:
        settings = load(path).settings
    except ConfigError as error:
        print(f"clamsmtpd: {error}", file=sys.stderr)
        return 1
    if settings.virus_action:
        print(
            "clamsmtpd: VirusAction runs in the unit's sandbox; clamsmtpd.service says what to loosen", file=sys.stderr
        )
    lines = additions(settings)
    if lines:
        print("\n".join([f"# What {path} wants and the unit does not give.", "[Service]", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
