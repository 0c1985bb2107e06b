"""Runs one target under Atheris: ``python -m fuzz.engine TARGET [OPTION OF LIBFUZZER | FOLDER | FILE]…``.

Nothing else imports Atheris, so that targets, their inputs and the driver work without it.
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    """Fuzz until libFuzzer has had enough, which ends the process."""
    name, *arguments = sys.argv[1:]
    # The product alone: what the models of the targets do leads to nothing new.
    with atheris.instrument_imports(include=["clamsmtpd"]):
        from fuzz import targets  # noqa: PLC0415 - instrumented by being imported here

        target = targets.find(name)
    # Where libFuzzer runs itself again, to merge or to make an input smaller, this is its own name.
    atheris.Setup([f"{sys.executable} -m fuzz.engine {name}", *arguments], target.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
