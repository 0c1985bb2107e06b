"""``python -m clamsmtpd.ctl``, and the program clamsmtpctl."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

__all__ = ["main"]

_NOT_INSTALLED = 3

_LIBRARIES = ("click", "rich")


def main() -> NoReturn:
    """Run clamsmtpctl; say what to install where its libraries are missing. Raises SystemExit, always."""
    try:
        # The daemon is installed without these.
        for library in _LIBRARIES:
            importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name not in _LIBRARIES:
            raise
        print(
            f"clamsmtpctl: the Python library {error.name} is missing; install clamsmtpd[ctl], or the packages "
            "python3-click and python3-rich",
            file=sys.stderr,
        )
        sys.exit(_NOT_INSTALLED)
    from clamsmtpd.ctl import main as commands  # noqa: PLC0415

    commands.main()


if __name__ == "__main__":
    main()
