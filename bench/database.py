"""A database of signatures of the size of a real one, made up: clamd is as busy with it, and nothing is found."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["made_up"]

#: Of a hundred signatures so many are patterns of octets; the rest are hashes of whole files.
_PATTERNS = 60
#: Octets of a pattern, or of each half of one that has a gap: from, to.
_LENGTHS = (10, 30)
#: Every other pattern is whole; these stand between the halves of the others.
_GAPS = ("??", "*", "{2-20}", "{-30}")


def _patterns(chance: random.Random, count: int) -> Iterator[str]:
    """Signatures for any kind of file, at any offset, as most of those that mail is looked at with."""
    for number in range(count):
        halves = [chance.randbytes(chance.randint(*_LENGTHS)).hex() for _ in range(2)]
        yield f"Bench.Pattern-{number}:0:*:{(chance.choice(_GAPS) if number % 2 else '').join(halves)}\n"


def _hashes(chance: random.Random, count: int) -> Iterator[str]:
    for number in range(count):
        yield f"{chance.randbytes(32).hex()}:{chance.randint(1_000, 1_000_000)}:Bench.Hash-{number}:73\n"


def made_up(signatures: int) -> dict[str, str]:
    """Return files of so many signatures in all, always the same ones, by the names that clamd knows them by."""
    chance = random.Random(2)
    patterns = signatures * _PATTERNS // 100
    return {
        "bench.ndb": "".join(_patterns(chance, patterns)),
        "bench.hsb": "".join(_hashes(chance, signatures - patterns)),
    }
