"""Many at once: connections that are open and do nothing, and large messages in front of a slow next hop."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from bench.contenders import Contender, Python, SkippedError, Stage
from bench.machine import memory, proportional_memory, raise_file_limit
from bench.scenarios import LostMailError

__all__ = ["large_messages", "open_connections"]

_LOAD = str(Path(__file__).resolve().parent / "load.py")
#: Descriptors that a program needs beside those of its connections.
_OTHER_DESCRIPTORS = 60
#: Memory is looked at each time that so many more are open.
_STEP = 100
#: Seconds between two looks at the memory of a busy proxy.
_LOOK = 0.2


def open_connections(python: Python, contender: Contender, wanted: int) -> dict[str, float]:
    """Open ``wanted`` connections, fewer if descriptors do not last, and leave them at that.

    Returns how many were ``tried``, and ``open`` at the most; what ``each`` costs, in octets; and, with all of them
    open, the ``p50`` of further messages in ms.
    Raises SkippedError if the contender cannot be started, LostMailError if it does not take mail beside them.
    """
    # A proxy has two connections for each client.
    limit = raise_file_limit(2 * wanted + _OTHER_DESCRIPTORS)
    tried = min(wanted, (limit - _OTHER_DESCRIPTORS) // 2)
    kept: list[socket.socket] = []
    with Stage(python, connections=tried + _OTHER_DESCRIPTORS) as stage, contextlib.ExitStack() as stack:
        running = stage.start(contender, f"MaxConnections: {min(tried + 10, contender.connections_max)}")
        assert running.program is not None
        before, each = proportional_memory(running.program.pid), math.nan
        with contextlib.suppress(OSError):
            while len(kept) < tried:
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=20))
                _greet(connection)
                kept.append(connection)
                if len(kept) % _STEP == 0 or len(kept) == tried:
                    each = (proportional_memory(running.program.pid) - before) / len(kept)
        found = {"tried": tried, "open": len(kept), "each": each, "p50": math.nan}
        if running.program.running and len(kept) == tried:
            found["p50"] = _typical_time(python, running.port, "--sessions=2", "--messages=40")
            if any(_is_closed(connection) for connection in kept):
                raise LostMailError("connections were closed without a reason")
    return found


def _greet(connection: socket.socket) -> None:
    for command in (b"", b"EHLO client.bench.invalid\r\n"):
        connection.sendall(command)
        reply = b""
        while not reply.endswith(b"\r\n"):
            received = connection.recv(4096)
            reply += received
            if not received or reply.startswith((b"4", b"5")):
                raise ConnectionRefusedError(repr(reply))


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _typical_time(python: Python, port: int, *arguments: str) -> float:
    """Run the load generator; return the median of a message's time, in ms."""
    command = [python.path, _LOAD, str(port), *arguments]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if printed["failure"]:
        raise LostMailError(printed["failure"])
    return float(printed["p50"])


def large_messages(python: Python, contender: Contender, *, sessions: int, size: int, slow: int) -> dict[str, float]:
    """Send one message in each of ``sessions`` at once; the next hop reads ``slow`` octets a second in each.

    Returns ``sessions`` and ``size``, the ``peak`` of memory (PSS, and files that exist in memory only), how much
    that is for ``each`` session beyond what the proxy holds when it is idle, the peak of space on ``disk``, all in
    octets, and the ``seconds`` that it took.
    Raises SkippedError if there is no room for the messages, or the contender cannot be started; LostMailError.
    """
    room = shutil.disk_usage(tempfile.gettempdir()).free
    needed = sessions * size * 11 // 10
    if room < needed:
        raise SkippedError(f"{needed / 1e9:.1f} GB needed in {tempfile.gettempdir()}, {room / 1e9:.1f} GB free")
    with Stage(python, slow=slow, connections=sessions + _OTHER_DESCRIPTORS, on_disk=True) as stage:
        running = stage.start(contender, f"MaxConnections: {sessions + 10}")
        assert running.program is not None
        idle = memory(running.program.pid).total
        begin, peak, disk = time.monotonic(), idle, 0
        arguments = [f"--sessions={sessions}", f"--messages={sessions}", f"--size={size}"]
        with subprocess.Popen(
            [python.path, _LOAD, str(running.port), *arguments], stdout=subprocess.PIPE, text=True
        ) as load:
            while load.poll() is None:
                now = memory(running.program.pid)
                peak, disk = max(peak, now.total), max(disk, now.unnamed)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    load.wait(_LOOK)
            assert load.stdout is not None
            printed = json.loads(load.stdout.read())
        seconds = time.monotonic() - begin
        if printed["failure"] or stage.taken() != sessions:
            raise LostMailError(f"{stage.taken()} of {sessions} arrived. {printed['failure']}")
    each = (peak - idle) / sessions
    return {"sessions": sessions, "size": size, "peak": peak, "each": each, "disk": disk, "seconds": seconds}
