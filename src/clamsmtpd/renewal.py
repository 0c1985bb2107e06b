"""The settings in force, and how others come into force while the daemon runs (SIGHUP)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from clamsmtpd.config import SETTINGS, ConfigError, Loaded, Settings
from clamsmtpd.log import escape
from clamsmtpd.tls import Certificate
from clamsmtpd.values import StartError

__all__ = ["ONLY_AT_START", "Renewal"]

_log = logging.getLogger("clamsmtpd")

#: What was made of these when the daemon started stays as long as it runs: sockets, processes, what they share, and
#: whom we have become.
ONLY_AT_START = frozenset({"admin", "listen", "log_format", "max_connections", "pid_file", "user", "workers"})


class Renewal:
    """Holds the ``settings`` and the ``certificate`` that are in force, and reads the settings anew by ``load``.

    ``check`` returns warnings, and raises StartError for settings that are good in themselves, and cannot be used here.
    """

    def __init__(
        self,
        settings: Settings,
        certificate: Certificate | None,
        load: Callable[[], Loaded],
        check: Callable[[Settings], Sequence[str]],
    ) -> None:
        self.settings = settings
        self.certificate = certificate
        self._load = load
        self._check = check

    def read(self, use: Callable[[Settings, Certificate | None], object], *, aloud: bool) -> bool:
        """Read the settings anew, and ``use`` them, which raises StartError if that cannot be; tell whether it could.

        Bad ones are one line in the log, and those from before stay. Unless ``aloud`` what has changed and what
        else is to be said of good ones is left to another process, which reads them too.
        """
        try:
            loaded = self._load()
            new = _with_those_at_start(loaded.settings, self.settings)
            warnings = [*loaded.warnings, *self._check(new)]
            certificate = self._certificate_for(new)
            use(new, certificate)
        except (ConfigError, StartError) as error:
            _log.error("%s; the settings from before are still used", escape(str(error)))
            return False
        if aloud:
            for warning in warnings:
                _log.warning("%s", warning)
            _tell_changes(self.settings, new, loaded.settings)
        self.settings, self.certificate = new, certificate
        return True

    def _certificate_for(self, new: Settings) -> Certificate | None:
        old = self.settings
        if (new.tls_certificate, new.tls_key) == (old.tls_certificate, old.tls_key):
            # It looks after its files itself; and who we are now may not be able to read its key again.
            return self.certificate
        return Certificate(new.tls_certificate, new.tls_key) if new.tls_certificate else None


def _with_those_at_start(new: Settings, old: Settings) -> Settings:
    kept = {attribute: getattr(old, attribute) for attribute in (*ONLY_AT_START, "listen_given")}
    return dataclasses.replace(new, **kept)


def _tell_changes(old: Settings, new: Settings, read: Settings) -> None:
    changed = _names_of_changes(old, new)
    _log.info("settings read again: %s", f"changed: {', '.join(changed)}" if changed else "nothing has changed")
    if waiting := _names_of_changes(new, read):
        _log.warning("changed, but only a restart can bring it into force: %s", ", ".join(waiting))


def _names_of_changes(one: Settings, other: Settings) -> list[str]:
    return [row.name for row in SETTINGS if getattr(one, row.attribute) != getattr(other, row.attribute)]
