"""The parts of a message, whole."""

from __future__ import annotations

from collections.abc import Iterable

from clamsmtpd.parts import Part, Parts

__all__ = ["read"]


def read(pieces: Iterable[bytes]) -> list[tuple[Part, bytes]]:
    """Return the parts of a message that comes in these pieces, each with its octets."""
    parts = Parts()
    found: list[tuple[Part, bytes]] = []
    octets = bytearray()

    def take(part: Part, piece: bytes, *, last: bool) -> None:
        nonlocal octets
        octets += piece
        if last:
            found.append((part, bytes(octets)))
            octets = bytearray()

    for data in pieces:
        for piece in parts.feed(data):
            take(piece.part, piece.octets, last=piece.last)
    for piece in parts.finish():
        take(piece.part, piece.octets, last=piece.last)
    return found
