"""From settings to a running daemon: bind, pid file, drop privileges, then read from the network."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from clamsmtpd import __version__, log
from clamsmtpd.config import Settings
from clamsmtpd.listeners import Listener, listen
from clamsmtpd.pidfile import PidFile
from clamsmtpd.privileges import become, find_user, raise_descriptor_limit
from clamsmtpd.server import Server
from clamsmtpd.tls import Certificate
from clamsmtpd.values import Listen, StartError, UnixAddress

__all__ = ["run"]

_log = logging.getLogger("clamsmtpd")

CLEAN_STOP = 0
START_FAILED = 1

#: What the log shows until the daemon has left the terminal: errors and warnings.
_LEVEL_AT_START = 2

_READY = b"1"


def run(settings: Settings, *, foreground_level: int | None, warnings: Sequence[str] = ()) -> int:
    """Run the daemon until it is told to stop; return the exit status.

    ``foreground_level`` is that of ``-d``, None to leave the terminal. ``warnings`` are told to
    whoever starts it. The process that started a daemon in the background returns as soon as that is serving.
    """
    log.configure(_LEVEL_AT_START if foreground_level is None else foreground_level)
    for warning in warnings:
        _log.warning("%s", warning)
    pid_file: PidFile | None = None
    listeners: list[Listener] = []
    try:
        user = find_user(settings.user) if settings.user else None
        # As long as we are root: the key is not for the user whom we become to read.
        certificate = Certificate(settings.tls_certificate, settings.tls_key) if settings.tls_certificate else None
        listeners = listen(settings.listen)
        ready = _detach() if foreground_level is None else None
        if ready in (_STARTED, _NOT_STARTED):
            return CLEAN_STOP if ready == _STARTED else START_FAILED
        if settings.pid_file:
            pid_file = PidFile(settings.pid_file)
        _warn(raise_descriptor_limit(settings.max_connections))
        if user is not None and os.geteuid() == 0:
            become(user)
        if os.geteuid() == 0:
            _log.warning("running as root is not needed; give a user with the setting User")
        _check_temp_directory(settings.temp_directory)
        if certificate is not None:
            _warn(certificate.renewable())
        status = _serve(settings, listeners, certificate, ready)
    except StartError as error:
        _log.critical("%s", error)
        if listeners:
            _remove_sockets(settings.listen)
        status = START_FAILED
    except Exception as error:  # noqa: BLE001
        # No traceback reaches a user; it is there for whoever asks for the debug log.
        _log.critical("internal error: %s: %s", type(error).__name__, error)
        _log.debug("traceback", exc_info=error)
        status = START_FAILED
    finally:
        for listener in listeners:
            listener.socket.close()
        if pid_file is not None:
            pid_file.remove()
    return status


def _serve(
    settings: Settings, listeners: Sequence[Listener], certificate: Certificate | None, ready: int | None
) -> int:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_error)
        stop = asyncio.Event()
        serving = asyncio.ensure_future(Server(settings, listeners, certificate).serve(stop))

        def on_signal() -> None:
            if stop.is_set():
                # Asked twice: whoever does that will not wait for transactions any more.
                serving.cancel()
            else:
                _remove_sockets(settings.listen)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        # Scripts that rotate logs send it to any daemon; 1.x did not end by it either.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if ready is not None:
            _leave_terminal(ready)
        _log.info("clamsmtpd %s accepting connections on %s", __version__, ", ".join(map(str, settings.listen)))
        try:
            await serving
        except asyncio.CancelledError:
            _log.warning("stopped before all transactions had ended")
            return START_FAILED
        _log.info("stopped")
        return CLEAN_STOP

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def _remove_sockets(places: Sequence[Listen]) -> None:
    """Remove Unix sockets while we still listen on them: later they may be those of the daemon that follows us."""
    for place in places:
        if isinstance(place.address, UnixAddress):
            try:
                os.unlink(place.address.path)
            except OSError as error:
                _log.info("cannot remove %s: %s", place.address.path, error.strerror)


_STARTED = -1
_NOT_STARTED = -2


def _detach() -> int:
    """Become a daemon; return the descriptor that tells the first process that we serve.

    In that first process, return whether we do: ``_STARTED`` or ``_NOT_STARTED``. Forked twice, so
    that no terminal can ever become ours again.
    """
    told, ready = os.pipe()
    sys.stderr.flush()
    if child := os.fork():
        os.close(ready)
        os.waitpid(child, 0)
        serving = os.read(told, 1) == _READY
        os.close(told)
        return _STARTED if serving else _NOT_STARTED
    os.close(told)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    return ready


def _leave_terminal(ready: int) -> None:
    """Let go of standard input, output and error, and send the log to syslog."""
    log.configure(None)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)
    os.write(ready, _READY)
    os.close(ready)


def _check_temp_directory(path: str) -> None:
    """Find out now, as the user we are, what would otherwise fail every message. Raises StartError."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise StartError(f"TempDirectory: {path}: {error.strerror}; give a directory that exists") from None
    if not stat.S_ISDIR(mode) or not os.access(path, os.W_OK | os.X_OK):
        raise StartError(f"TempDirectory: cannot write to {path}; give a directory that the daemon's user owns")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        _log.warning("TempDirectory: others may write to %s and have no sticky bit in their way", path)


def _on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught as one line; its traceback is for the debug log."""
    error = context.get("exception")
    if error is None:
        _log.error("internal error: %s", context.get("message"))
        return
    _log.error("internal error: %s: %s: %s", context.get("message"), type(error).__name__, error)
    _log.debug("traceback", exc_info=error)


def _warn(warning: str | None) -> None:
    if warning is not None:
        _log.warning("%s", warning)
