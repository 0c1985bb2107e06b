"""The command line: arguments to settings to a running daemon, and the exit status."""

from __future__ import annotations

import functools
import getopt
import signal
import sys
from collections.abc import Callable, Sequence

from clamsmtpd import __version__
from clamsmtpd.config import DEFAULT_PATH, ConfigError, Loaded, Settings, load, printable, working_directory

__all__ = ["BAD_USAGE", "main"]

#: Exit status for bad usage or a bad configuration.
BAD_USAGE = 2

NOT_STARTED = 1

_USAGE = "usage: clamsmtpd [-d level] [-f configfile] [-p pidfile]\n       clamsmtpd -v"

_LEVELS = ("0", "1", "2", "3", "4")

# Flags of versions before the settings file: the setting each stands for, and its value if it takes none.
_OLD_FLAGS = {
    "-b": ("Action", "bounce"),
    "-c": ("ClamAddress", None),
    "-D": ("TempDirectory", None),
    "-h": ("Header", None),
    "-l": ("Listen", None),
    "-m": ("MaxConnections", None),
    "-q": ("Quarantine", "on"),
    "-t": ("TimeOut", None),
    "-X": ("DebugFiles", "on"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run clamsmtpd with ``argv``, without the program's name; return the exit status.

    0 after a clean stop, 1 for a failure to start, 2 for bad usage or a bad configuration (clamsmtpd(8)).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        flags, positional = getopt.gnu_getopt(arguments, "d:f:p:vbc:D:h:l:m:qt:X", ["help", "version"])
    except getopt.GetoptError as error:
        return _bad_usage(error.msg)
    names = [flag for flag, _ in flags]
    if "-v" in names or "--version" in names:
        print(f"clamsmtpd (version {__version__})\n          (config: {DEFAULT_PATH})")
        return 0
    if "--help" in names:
        print(_USAGE)
        return 0
    level: int | None = None
    path = DEFAULT_PATH
    overrides: list[tuple[str, str, str]] = []
    warnings: list[str] = []
    for flag, value in flags:
        if flag == "-d":
            if value not in _LEVELS:
                return _bad_usage(f'-d: "{value}" is no level; give a number from 0 to 4')
            level = int(value)
        elif flag == "-f":
            path = value
        elif flag == "-p":
            overrides.append((flag, "PidFile", value))
        else:
            name, fixed = _OLD_FLAGS[flag]
            overrides.append((flag, name, fixed or value))
            setting = f"{name}: {fixed or value}".rstrip()
            warnings.append(f"{flag} is an old flag; write {printable(setting)} in the settings file")
    if len(positional) > 1:
        return _bad_usage(f'one argument at most, the next hop\'s address; "{positional[1]}" is too many')
    if positional:
        overrides.append(("argument", "OutAddress", positional[0]))
        warnings.append(
            f"an argument is an old form; write OutAddress: {printable(positional[0])} in the settings file"
        )
    # One that comes from here on is kept until there is somebody to read the settings again.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Before there was a settings file, an argument was all it took.
    required = "-f" in names or not positional
    read = functools.partial(load, path, overrides, required=required, folder=working_directory())
    try:
        loaded = read()
    except ConfigError as error:
        print(f"clamsmtpd: {error}", file=sys.stderr)
        return BAD_USAGE
    return _run(loaded.settings, level, (*warnings, *loaded.warnings), read)


def _run(settings: Settings, level: int | None, warnings: Sequence[str], read: Callable[[], Loaded]) -> int:
    try:
        # Only now: bad usage and a bad configuration are told without loading the daemon.
        from clamsmtpd import daemon  # noqa: PLC0415

        return daemon.run(settings, foreground_level=level, warnings=warnings, load=read)
    except KeyboardInterrupt:
        # Once the daemon serves, SIGINT is a clean stop. Until then nothing was begun that could end well.
        return NOT_STARTED


def _bad_usage(message: str) -> int:
    print(f"clamsmtpd: {message}\n{_USAGE}", file=sys.stderr)
    return BAD_USAGE
