"""How a target divides its input: into the octets to feed, and how the network cuts them."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["cuttings", "pieces", "split_off"]

#: So many octets at the start of an input are sizes.
_SIZES = 4

_SINGLE_MAX = 400
_SMALL = 11


def split_off(data: bytes, length: int) -> tuple[bytes, bytes]:
    """Return the first ``length`` octets, filled up with zeros, and the rest."""
    return data[:length].ljust(length, b"\0"), data[length:]


def pieces(data: bytes, sizes: bytes) -> Iterator[bytes]:
    """Cut ``data`` into pieces of these sizes, over and over; a size of 0 is a piece without octets."""
    at = turn = 0
    # Sizes that are all 0 would never come to the end.
    sizes = sizes if any(sizes) else sizes + b"\1"
    while at < len(data):
        size = sizes[turn % len(sizes)]
        turn += 1
        yield data[at : at + size]
        at += size


def cuttings(data: bytes) -> tuple[bytes, list[list[bytes]]]:
    """Return the octets of an input, and them whole, in small pieces, and cut as the start of the input says.

    The small pieces are single octets, unless there are so many that this would cost most of the time.
    """
    sizes, octets = split_off(data, _SIZES)
    whole = [octets] if octets else []
    small = b"\1" if len(octets) <= _SINGLE_MAX else bytes((_SMALL,))
    return octets, [whole, list(pieces(octets, small)), list(pieces(octets, sizes))]
