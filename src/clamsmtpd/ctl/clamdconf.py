"""What clamd.conf(5) says, as far as mail depends on it."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ClamdSettings", "parse_clamd_conf"]

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_SIZE = re.compile(r"([0-9]{1,15})([kmg]?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ClamdSettings:
    """Sizes are in octets; 0 is no limit. The defaults are those of ClamAV 1.0 and later.

    ``tcp_addresses`` are those of TCPAddr; with none, ``tcp_port`` is one of all addresses.
    """

    stream_max_length: int = 100 * 1024**2
    max_file_size: int = 100 * 1024**2
    max_scan_size: int = 400 * 1024**2
    max_threads: int = 10
    max_queue: int = 100
    tcp_port: int | None = None
    tcp_addresses: tuple[str, ...] = ()
    local_socket: str | None = None


_NUMBERS = {
    "streammaxlength": "stream_max_length",
    "maxfilesize": "max_file_size",
    "maxscansize": "max_scan_size",
    "maxthreads": "max_threads",
    "maxqueue": "max_queue",
    "tcpsocket": "tcp_port",
}


def parse_clamd_conf(text: str) -> ClamdSettings:
    """Return what the text of a clamd.conf says; what cannot be understood is for clamd to say."""
    found: dict[str, int] = {}
    addresses: list[str] = []
    local: str | None = None
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) < 2:  # noqa: PLR2004 - a name and a value
            continue
        name = words[0].lower()
        size = _SIZE.fullmatch(words[1])
        if name in _NUMBERS and size is not None:
            found[_NUMBERS[name]] = int(size[1]) * _UNITS[size[2].lower()]
        elif name == "tcpaddr":
            addresses.append(words[1])
        elif name == "localsocket":
            local = words[1]
    return ClamdSettings(**found, tcp_addresses=tuple(addresses), local_socket=local)
