"""The targets of fuzzing, one a module.

A target has ``one_input(data)``, which takes any octets, returns nothing and fails with an AssertionError, or with any
other exception, if something is wrong; and ``WORDS``, octets that mean something to what it feeds. It knows nothing of
Atheris. ``fuzz/corpus/TARGET`` holds inputs to start from, ``fuzz/findings/TARGET`` inputs that failed once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NAMES", "Target", "find"]

NAMES = (
    "attributes",
    "body",
    "chunks",
    "commands",
    "parts",
    "proxy",
    "relay",
    "replies",
    "settings",
    "template",
    "verdicts",
)

_FUZZ = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Target:
    """A target that has been imported."""

    name: str
    one_input: Callable[[bytes], None]
    words: tuple[bytes, ...]

    @property
    def corpus(self) -> Path:
        """The folder of the inputs to start from."""
        return _FUZZ / "corpus" / self.name

    @property
    def findings(self) -> Path:
        """The folder of the inputs that failed once."""
        return _FUZZ / "findings" / self.name

    def inputs(self) -> list[Path]:
        """Return all of them."""
        folders = (self.corpus, self.findings)
        return sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir())


def find(name: str) -> Target:
    """Import a target; its product modules come along."""
    module = importlib.import_module(f"fuzz.targets.{name}")
    return Target(name, module.one_input, module.WORDS)
