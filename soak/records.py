"""What the clients and the next hop write down as they go, and the reckoning reads: a line of JSON for each thing."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["CLOSED", "Delivery", "End", "Heard", "Record", "Recorder", "Try", "read"]


#: What stands for the reply of a try whose connection the other side has closed in an orderly way.
CLOSED = "closed by the other side"


class End(enum.StrEnum):
    """How a try to send a message ended for its client."""

    #: With a reply, of any kind.
    TOLD = "told"
    #: The connection broke, or was closed by the other side.
    LOST = "lost"
    #: The client itself left.
    LEFT = "left"
    #: Nothing happened until the client's patience was at an end. This must not be.
    SILENT = "silent"


@dataclasses.dataclass(frozen=True, slots=True)
class Try:
    """One try of a client to send message ``number``; ``attempt`` counts those from 1.

    ``whole``: the end of the text may have been sent. ``reply`` is the one that ended the try, the first that refused
    something or else that to the text; without one, it is what is known of the end.
    """

    number: int
    attempt: int
    end: End
    whole: bool
    reply: str
    seconds: float

    @property
    def code(self) -> int:
        """The class of the reply: 2, 4 or 5; 0 without one."""
        return int(self.reply[:1]) if self.end is End.TOLD and self.reply[:1].isdigit() else 0


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """A message that the next hop has taken, noted before it says so.

    Number and attempt are those of the envelope. ``digest`` is the SHA-256 of the text without stuffed dots, ``size``
    its octets, ``fields`` its header fields that begin with X-Virus.
    """

    number: int
    attempt: int
    digest: str
    size: int
    fields: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """The filter has gone on after the next hop's 250 for a message: it must have read that."""

    number: int
    attempt: int


Record = Try | Delivery | Heard

_KINDS: dict[str, type[Record]] = {kind.__name__: kind for kind in (Try, Delivery, Heard)}


class Recorder:
    """Appends records to a file. What ``write`` has returned from outlives a SIGKILL at once."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, record: Record) -> None:
        """Append one record, by one system call. Raises OSError."""
        line = json.dumps({"kind": type(record).__name__, **dataclasses.asdict(record)}).encode() + b"\n"
        if os.write(self._descriptor, line) != len(line):
            raise OSError("a record was not written whole")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a file; none if there is no such file."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            values: dict[str, Any] = json.loads(line)
            kind = _KINDS[values.pop("kind")]
            if "end" in values:
                values["end"] = End(values["end"])
            yield kind(**values)
