"""Mails that others collected to test their programs with."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path

from tests.support.clamd import TEST_FILES
from tests.support.unpacked import UNPACKED

__all__ = ["infected_mail_samples", "mail_samples"]


def mail_samples() -> list[Path]:
    """Return the mails of CPython's own tests, broken ones among them. Most have bare line feeds."""
    folder = Path("test", "test_email", "data")
    places = [Path(sysconfig.get_path("stdlib")) / folder]
    # Where Python comes without its tests; the version need not be that of the Python that runs.
    places += sorted((UNPACKED / "usr" / "lib").glob(f"python3*/{folder}"))
    return _found((path for place in places for path in place.glob("msg_*.txt")), "the mails of Python's own tests")


def infected_mail_samples() -> list[Path]:
    """Return the mails among ClamAV's own test files, each with its test program inside."""
    return _found(TEST_FILES.glob("*mail*"), "clamav-testfiles")


def _found(paths: Iterable[Path], what: str) -> list[Path]:
    # Of files of one name the first: the places to look in come in the order of preference.
    by_name: dict[str, Path] = {}
    for path in paths:
        by_name.setdefault(path.name, path)
    if not by_name:
        # A test that goes through an empty list would pass, and say nothing.
        raise FileNotFoundError(f"{what}: not found; scripts/setup test installs them")
    return [by_name[name] for name in sorted(by_name)]
