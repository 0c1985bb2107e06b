"""From settings to a running daemon: bind, pid file, drop privileges, then read from the network."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from clamsmtpd import __version__, log, worker
from clamsmtpd.activation import passed_sockets
from clamsmtpd.commons import Commons
from clamsmtpd.config import Loaded, Settings
from clamsmtpd.descriptors import shed
from clamsmtpd.listeners import Listener, listen
from clamsmtpd.metrics import BEAT, READINESS, SERVING, SESSIONS
from clamsmtpd.notify import Notifier
from clamsmtpd.pidfile import PidFile
from clamsmtpd.privileges import become, drop_capabilities, find_user, forbid_core_dumps, raise_descriptor_limit
from clamsmtpd.readiness import READY, WAITS_FOR_NEXT_HOP
from clamsmtpd.renewal import Renewal
from clamsmtpd.supervisor import Supervisor, Tie, automatic_workers
from clamsmtpd.tempdirectory import check_temp_directory
from clamsmtpd.tls import Certificate, client_context
from clamsmtpd.values import LogFormat, StartError

__all__ = ["run"]

_log = logging.getLogger("clamsmtpd")

CLEAN_STOP = 0
START_FAILED = 1

#: What the log shows until the daemon has left the terminal: errors and warnings.
_LEVEL_AT_START = 2

_READY = b"1"


def run(
    settings: Settings,
    *,
    foreground_level: int | None,
    warnings: Sequence[str] = (),
    load: Callable[[], Loaded] | None = None,
) -> int:
    """Run the daemon until it is told to stop; return the exit status.

    ``foreground_level`` is that of ``-d``, None to leave the terminal. ``warnings`` are told to
    whoever starts it. The process that started a daemon in the background returns as soon as that is serving.
    ``load`` reads the settings anew, and raises ConfigError; SIGHUP may be blocked until then.
    """
    # Before the first socket is opened.
    shed()
    log.configure(_LEVEL_AT_START if foreground_level is None else foreground_level, settings.log_format)
    _warn(*warnings)
    pid_file: PidFile | None = None
    listeners: list[Listener] = []
    admin: list[Listener] = []
    notifier = Notifier(os.environ)
    try:
        user = find_user(settings.user) if settings.user else None
        # As long as we are root: the key is not for the user whom we become to read.
        certificate = Certificate(settings.tls_certificate, settings.tls_key) if settings.tls_certificate else None
        passed = passed_sockets(os.environ)
        # The default is for whoever says nothing of where to listen, in no way.
        listeners = listen(settings.listen if settings.listen_given or not passed else (), passed)
        if settings.admin is not None:
            _import_admin()
            admin = listen((settings.admin,), setting="Admin")
        ready = _detach() if foreground_level is None else None
        if ready in (_STARTED, _NOT_STARTED):
            return CLEAN_STOP if ready == _STARTED else START_FAILED
        if settings.pid_file:
            pid_file = PidFile(settings.pid_file)
        _warn(raise_descriptor_limit(settings.max_connections))
        forbid_core_dumps()
        if user is not None and os.geteuid() == 0:
            become(user)
        drop_capabilities()
        if os.geteuid() == 0:
            _log.warning("running as root is not needed; give a user with the setting User")
        _warn(*_check(settings))
        if certificate is not None:
            _warn(certificate.renewable())
        renewal = Renewal(settings, certificate, load or (lambda: Loaded(settings, ())), _check)
        status = _serve(renewal, listeners, admin, notifier, pid_file=pid_file, ready=ready)
    except StartError as error:
        _log.critical("%s", error)
        _remove_sockets([*listeners, *admin])
        status = START_FAILED
    except Exception as error:  # noqa: BLE001
        # No traceback reaches a user; it is there for whoever asks for the debug log.
        _log.critical("internal error: %s: %s", type(error).__name__, error)
        _log.debug("traceback", exc_info=error)
        status = START_FAILED
    finally:
        for listener in (*listeners, *admin):
            listener.socket.close()
        notifier.close()
        if pid_file is not None:
            pid_file.remove()
    return status


def _import_admin() -> None:
    """Load what Admin needs, while we may read all folders. Raises StartError."""
    try:
        for module in ("http", "pages", "view"):
            importlib.import_module(f"clamsmtpd.admin.{module}")
    except ModuleNotFoundError as error:
        raise StartError(
            f"Admin: the Python library {error.name} is missing; install clamsmtpd[admin], or leave Admin out"
        ) from None


def _serve(
    renewal: Renewal,
    listeners: Sequence[Listener],
    admin: Sequence[Listener],
    notifier: Notifier,
    *,
    pid_file: PidFile | None,
    ready: int | None,
) -> int:
    """Serve in this process, or in several under this one; return the exit status. Raises StartError."""
    settings = renewal.settings
    workers = settings.workers or automatic_workers(settings.max_connections)
    commons = Commons(workers, settings.max_connections, seen=settings.admin is not None)
    crew = _Crew(renewal, listeners, commons, notifier, admin=admin, pid_file=pid_file, ready=ready)
    if workers == 1:
        status = crew.work_alone()
    else:
        # What would stop each of the workers is told once.
        client_context(settings.out_tls)
        status = Supervisor(workers, crew, watchdog=crew.watchdog).run()
    if status == CLEAN_STOP:
        crew.report()
        _log.info("stopped")
    return status


class _Crew:
    """The workers of this daemon, and what is done around them."""

    def __init__(
        self,
        renewal: Renewal,
        listeners: Sequence[Listener],
        commons: Commons,
        notifier: Notifier,
        *,
        admin: Sequence[Listener],
        pid_file: PidFile | None,
        ready: int | None,
    ) -> None:
        self._renewal = renewal
        self._listeners = listeners
        self._admin = admin
        self._commons = commons
        self._notifier = notifier
        #: Seconds between two words to the watchdog: it may miss one.
        self.watchdog = None if notifier.watchdog is None else notifier.watchdog / 2
        self._started = False
        # Of READINESS, what the service manager has been told.
        self._told = 0
        self._pid_file = pid_file
        # Where the first process hears that we serve; None in the foreground, and once it has heard.
        self._ready = ready
        self._in_background = ready is not None

    def work_alone(self) -> int:
        """Serve in this process; return the exit status."""
        obey = worker.alone(
            on_serving=self._on_serving_alone,
            on_stop=self.on_stop,
            on_hangup=lambda service: self._reload(lambda: service.read_again(aloud=True)),
            report=self.report,
        )
        status = self._serve(0, obey)
        if status != CLEAN_STOP:
            _log.warning("stopped before all transactions had ended")
        return status

    def work(self, number: int, tie: Tie) -> int:
        # The pid file is locked until nobody has it open: it is the supervisor's alone.
        if self._pid_file is not None:
            self._pid_file.let_go()
        if self._ready is not None:
            os.close(self._ready)
        # One is enough, and once: the next hop is to see no connections that no client has made.
        asks = bool(self._notifier) and number == 0 and self._told != READY
        return self._serve(number, worker.under(tie, on_serving=self._on_worker_serving, finds_out_readiness=asks))

    def _serve(self, number: int, obey: worker.Obey) -> int:
        return worker.serve(self._listeners, self._renewal, self._commons.share(number), obey, self._admin)

    def _on_serving_alone(self, service: worker.Service) -> None:
        self.on_started()
        if self._notifier:
            service.find_out_readiness(self.on_look)
        if self.watchdog is not None:
            service.repeat(self.watchdog, self.on_alive)

    def _on_worker_serving(self) -> None:
        if self._in_background:
            _leave_terminal(self._renewal.settings.log_format)

    def serves(self, number: int) -> bool:
        return bool(self._commons.metrics.row(number)[SERVING])

    def beat(self, number: int) -> int:
        beat: int = self._commons.metrics.row(number)[BEAT]
        return beat

    def sessions(self) -> int:
        return self._commons.metrics.total(SESSIONS)

    def on_started(self) -> None:
        self._started = True
        if self._ready is not None:
            _leave_terminal(self._renewal.settings.log_format)
            os.write(self._ready, _READY)
            os.close(self._ready)
            self._ready = None
        places = ", ".join(dict.fromkeys(str(listener.listen) for listener in self._listeners))
        _log.info("clamsmtpd %s accepting connections on %s", __version__, places)

    def on_look(self) -> None:
        step = self._commons.metrics.row(0)[READINESS]
        if not self._started or self._told in (step, READY) or not step:
            return
        self._told = step
        if step == READY:
            self._notifier.ready()
        elif step == WAITS_FOR_NEXT_HOP:
            self._notifier.waiting(f"the next hop, {self._renewal.settings.out_address}")
        else:
            self._notifier.waiting("a scanner")

    def on_alive(self) -> None:
        self._notifier.alive()

    def read_again(self, tell: Callable[[], None]) -> None:
        def read() -> None:
            # A worker makes more of them. What would keep each of them from that is told once.
            if self._renewal.read(lambda settings, _: client_context(settings.out_tls), aloud=True):
                tell()

        self._reload(read)

    def _reload(self, read: Callable[[], None]) -> None:
        if self._told != READY:
            # There is no way back from "ready" to a start that goes on.
            read()
            return
        self._notifier.reloading()
        read()
        self._notifier.ready()

    def on_stop(self) -> None:
        self._notifier.stopping()
        _remove_sockets([*self._listeners, *self._admin])
        if self._commons.workers > 1:
            # As long as one process has them open, clients could connect, and would wait for nobody.
            for listener in (*self._listeners, *self._admin):
                listener.socket.close()

    def on_ended(self, number: int) -> int:
        sessions = self._commons.metrics.row(number)[SESSIONS]
        self._commons.forget(number)
        return sessions

    def report(self) -> None:
        _log.info("totals: %s", self._commons.metrics)


def _remove_sockets(listeners: Sequence[Listener]) -> None:
    """Remove Unix sockets while we still listen on them: later they may be those of the daemon that follows us."""
    for listener in listeners:
        try:
            listener.remove()
        except OSError as error:
            _log.info("cannot remove %s: %s", listener.listen.address, error.strerror)


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


def _leave_terminal(log_format: LogFormat) -> None:
    """Let go of standard input, output and error, and send the log to syslog."""
    log.configure(None, log_format)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)


def _check(settings: Settings) -> Sequence[str]:
    """Find out whether settings that are good in themselves can be used here; return warnings. Raises StartError."""
    return check_temp_directory(settings.temp_directory)


def _warn(*warnings: str | None) -> None:
    for warning in warnings:
        if warning is not None:
            _log.warning("%s", warning)
