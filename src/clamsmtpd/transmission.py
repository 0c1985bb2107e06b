"""The text of a message on its way to the next hop, as fast as that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from clamsmtpd.connection import Connection
from clamsmtpd.spool import FileRange

__all__ = ["Transmission"]

#: Octets handed over in one call, where the kernel cannot take them from the file itself.
WRITE_SIZE = 262144


class Transmission:
    """Sends ``pieces`` by ``transport``, whose protocol sets ``paused`` as that wants it."""

    __slots__ = ("_pieces", "_range", "_transport", "paused", "sent")

    def __init__(self, transport: asyncio.Transport, pieces: Iterator[bytes | FileRange]) -> None:
        #: Whether the transport has had enough for now.
        self.paused = False
        #: Octets that have been handed to it.
        self.sent = 0
        self._transport = transport
        self._pieces = pieces
        # What is to be sent of a file before the next piece.
        self._range: FileRange | None = None

    def go_on(self) -> bool:
        """Send until there is a pause; tell whether all has been sent. Raises OSError for a file that fails."""
        while not self.paused:
            if self._range is not None:
                self._send_from_file(self._range)
                continue
            batch: list[bytes] = []
            size = 0
            for piece in self._pieces:
                if isinstance(piece, FileRange):
                    self._range = piece
                    break
                batch.append(piece)
                size += len(piece)
                if size >= WRITE_SIZE:
                    break
            if batch:
                self._transport.writelines(batch)
                self.sent += size
            elif self._range is None:
                return True
        return False

    def _send_from_file(self, wanted: FileRange) -> None:
        if isinstance(self._transport, Connection):
            sent = self._transport.send_file(wanted.descriptor, wanted.start, wanted.stop)
            # It will say when to go on, even if it had told somebody else to pause before us.
            self.paused = sent < wanted.stop - wanted.start
        else:
            data = next(wanted.pieces())
            self._transport.write(data)
            sent = len(data)
        self.sent += sent
        start = wanted.start + sent
        self._range = FileRange(wanted.descriptor, start, wanted.stop) if start < wanted.stop else None
        if self._transport.is_closing():
            self.paused = True
