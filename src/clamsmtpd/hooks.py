"""The hook (setting VirusAction): what it is told about an infected message, and how it is run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import subprocess
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from clamsmtpd.account import Tag
from clamsmtpd.log import escape
from clamsmtpd.values import Envelope

__all__ = ["VARIABLES", "HookRunner", "environment"]

_log = logging.getLogger("clamsmtpd")

PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Hooks that run at once. An outbreak sends infected messages faster than a script of a mail
#: administrator runs; the others wait in order, for each message is to have its hook.
AT_ONCE = 16

#: Octets of a hook's output that one log line shows.
_LINE_MAX = 1000

#: Octets of the environments of hooks that wait. Where infected messages come faster than their hooks run, and for
#: hours, either some have none or no memory is left for any message.
WAITING_MAX = 16 * 1024 * 1024

#: What a hook that waits costs beside the octets of its environment.
_WAITING_COST = 1000

#: Octets of RECIPIENTS. The kernel takes no string of more than 128 KiB (MAX_ARG_STRLEN, execve(2)): a virus sent
#: to a thousand recipients must not be the one without a hook.
_RECIPIENTS_MAX = 100_000

#: Octets of any other value, for the same reason. No path has more (PATH_MAX), and no command line that we take.
_VALUE_MAX = 8192

#: Descriptors that it takes for a moment to start a process: our pipe, three for the process, two pipes of the loop's.
_DESCRIPTORS = 9

#: Seconds that a hook's output is still read once the shell has ended: it may have left a process behind.
_OUTPUT_LIMIT = 1.0

# C0, DEL, C1 as UTF-8 writes it and as single octets, which is what Latin-1 has, and what only has to do with the
# direction of writing: it would show a script's user another name than there is.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\udc80-\udc9f]")


class Variable(NamedTuple):
    """A variable of the hook's environment, and what it says."""

    name: str
    meaning: str


#: All of them, beside ``PATH``. The manual is made from this.
VARIABLES = (
    Variable(
        "ATTACHMENT",
        "the name of the attachment that has the virus, without a path, or such as `part 2 (text/html)` where it has "
        "no name; absent if the virus is in no part by itself, or the search for it was given up",
    ),
    Variable("CLIENT", "the client's address"),
    Variable("EMAIL", "the file in quarantine, with **Quarantine**: `on`"),
    Variable(
        "RECIPIENTS",
        "the recipients that the next hop accepted, one a line; of very many, as many as 100,000 octets hold",
    ),
    Variable("REMOTE", "the address of the client before the client, from an XFORWARD that the next hop accepted"),
    Variable("REMOTE_HELO", "the name that this client gave in HELO, from the same"),
    Variable("SENDER", "the sender, or `<>`"),
    Variable("SERVER", "the next hop's address"),
    Variable("SHA256", "the SHA-256 of the attachment's file, decoded, in hexadecimal digits; with **ATTACHMENT**"),
    Variable("TMPDIR", "the setting **TempDirectory**"),
    Variable("VIRUS", "the name of the virus"),
)


def environment(
    envelope: Envelope,
    *,
    client: str,
    server: str | None,
    temp_directory: str,
    quarantine_file: str | None,
    virus: str,
    attachment: str | None = None,
    sha256: str | None = None,
) -> dict[str, bytes]:
    """Return the environment of the hook for one infected message (clamsmtpd(8)).

    A variable without a value is absent. The values come from strangers: control characters become
    ``?``, and the only line ends are those between recipients. Recipients beyond 100,000 octets are left out, and
    other values cut at 8,192: the kernel would not run it.
    """
    values: dict[str, bytes | None] = {
        "ATTACHMENT": _encode(attachment),
        "CLIENT": client.encode(),
        "EMAIL": _encode(quarantine_file),
        "REMOTE": envelope.remote,
        "REMOTE_HELO": envelope.remote_helo,
        "SENDER": envelope.sender or b"<>",
        "SERVER": _encode(server),
        "SHA256": _encode(sha256),
        "TMPDIR": _encode(temp_directory),
        "VIRUS": virus.encode(),
    }
    result = {name: _plain(value) for name, value in values.items() if value}
    if envelope.recipients:
        result["RECIPIENTS"] = _lines(envelope.recipients)
    result["PATH"] = PATH
    return result


def _lines(recipients: tuple[bytes, ...]) -> bytes:
    size = 0
    lines: list[bytes] = []
    for recipient in recipients:
        size += min(len(recipient), _VALUE_MAX) + 1
        if size > _RECIPIENTS_MAX:
            break
        lines.append(_plain(recipient))
    return b"\n".join(lines)


def _plain(value: bytes) -> bytes:
    """Take from a value what plays with a terminal, a log or a script; what is not UTF-8 stays as it is otherwise."""
    text = value[:_VALUE_MAX].decode("utf-8", "surrogateescape")
    return _CONTROLS.sub("?", text).encode("utf-8", "surrogateescape")


def _encode(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


class HookRunner:
    """Runs hooks beside the sessions: no reply waits for one, and what becomes of one changes no mail."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Mapping[str, bytes], Tag]] = deque()
        self._waiting_octets = 0
        self._running: set[asyncio.Task[None]] = set()

    def start(self, command: str, variables: Mapping[str, bytes], tag: Tag) -> None:
        """Run ``command`` by ``/bin/sh -c`` with ``variables`` and nothing else in its environment.

        Returns at once. ``tag`` stands in front of each log line about it. With ``WAITING_MAX`` octets of others
        that wait, it is not run but logged as an error.
        """
        if self._waiting_octets >= WAITING_MAX:
            _log.error("%s: the hook is not run: %d others wait", tag, len(self._waiting))
            return
        self._waiting.append((command, variables, tag))
        self._waiting_octets += _cost(variables)
        self._run_next()

    async def drain(self, limit: float) -> None:
        """Wait up to ``limit`` seconds for all hooks to end; those that then still run are left alone.

        Those that still wait are never run.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while self._running and (left := end - loop.time()) > 0:
            await asyncio.wait(self._running, timeout=left)
        if self._running:
            _log.warning("%d hooks had not ended, %d had not started", len(self._running), len(self._waiting))
        self._waiting.clear()
        self._waiting_octets = 0
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _run_next(self) -> None:
        while self._waiting and len(self._running) < AT_ONCE:
            command, variables, tag = self._waiting.popleft()
            self._waiting_octets -= _cost(variables)
            task = asyncio.get_running_loop().create_task(_run(command, variables, tag))
            self._running.add(task)
            task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._run_next()


def _cost(variables: Mapping[str, bytes]) -> int:
    return _WAITING_COST + sum(map(len, variables.values()))


async def _run(command: str, variables: Mapping[str, bytes], tag: Tag) -> None:
    try:
        _check_room()
        # The pipe is ours, not the event loop's: that one would wait for, and keep open, what a process
        # left behind still holds. Output that no log line will show is not read at all.
        receive, send = os.pipe() if _log.isEnabledFor(logging.DEBUG) else (None, None)
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                command,
                env={name.encode(): value for name, value in variables.items()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if send is None else send,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal of a daemon in the foreground is not meant for it.
                start_new_session=True,
            )
        except BaseException:
            if receive is not None:
                os.close(receive)
            raise
        finally:
            if send is not None:
                os.close(send)
    except OSError as error:
        _log.error("%s: cannot run the hook: %s", tag, error.strerror)
        return
    if receive is None:
        await process.wait()
        return
    reading = asyncio.ensure_future(_log_output(receive, tag))
    try:
        status = await process.wait()
        await asyncio.wait((reading,), timeout=_OUTPUT_LIMIT)
        _log.debug("%s: hook ended with status %d", tag, status)
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


def _check_room() -> None:
    """Raise OSError if there are too few descriptors left to start a process.

    uvloop leaves those open that it has made for one by then, and each further hook would leave more.
    """
    with contextlib.ExitStack() as probes:
        for _ in range(_DESCRIPTORS):
            probes.callback(os.close, os.dup(0))


async def _log_output(descriptor: int, tag: Tag) -> None:
    """Log a hook's output, one log line for each of its lines, and close ``descriptor``."""
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, "rb", buffering=0)
    )
    rest = b""
    try:
        while data := await stream.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _log_line(line, tag)
            # Of a line without an end, nothing beyond this would be shown.
            rest = rest[:_LINE_MAX]
    finally:
        if rest:
            _log_line(rest, tag)
        transport.close()


def _log_line(line: bytes, tag: Tag) -> None:
    _log.debug("%s: hook: %s", tag, escape(line[:_LINE_MAX]))
