"""What is answered to which path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

from clamsmtpd.admin.exposition import Exposition
from clamsmtpd.admin.view import View
from clamsmtpd.log import describe

__all__ = ["PATHS", "Page", "Pages"]

_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"

#: Seconds for which one look at all that mail needs serves all who ask: each is a find in clamd's log.
READY_FOR = 10.0

#: The paths, and what each tells.
PATHS: dict[str, str] = {
    "/metrics": "all numbers, for Prometheus",
    "/healthz": "200 as long as a worker answers",
    "/readyz": "whether a clean and an infected sample have the right verdict now, from each scanner, and the next hop "
    "greets: 200, or 503 with what is wrong",
    "/status": "sessions, workers, scanners and numbers, as JSON",
    "/messages": "the last messages, as JSON; through a unix socket alone",
    "/messages/ID": "one of them, by its id, its connection's, its file's in quarantine or the next hop's",
}


class Page(NamedTuple):
    """An answer: the status code of HTTP, the media type, the text."""

    status: int
    media_type: str
    body: bytes


#: Finds out what is wrong with each part that mail needs: its name, and what it is, empty for nothing.
Examine = Callable[[], Awaitable[list[tuple[str, str]]]]


class Pages:
    """Answers for the whole daemon."""

    def __init__(self, view: View, examine: Examine) -> None:
        self._view = view
        self._examine = examine
        self._exposition = Exposition(view)
        self._looked_at = -READY_FOR
        self._looking: asyncio.Task[list[tuple[str, str]]] | None = None

    async def answer(self, path: str, *, accept: str = "", private: bool) -> Page:
        """Return what ``path`` tells; ``private``: whoever asks came through a unix socket."""
        path = path.partition("?")[0]
        if path == "/metrics":
            return Page(200, *self._exposition.render(accept))
        if path == "/healthz":
            return Page(200, _TEXT, b"ok\n")
        if path == "/readyz":
            return await self._ready()
        if path == "/status":
            return _json(200, self._view.status())
        if path == "/messages" or path.startswith("/messages/"):
            wanted = unquote(path.removeprefix("/messages").removeprefix("/"))
            return await self._messages(wanted, private=private)
        if path == "/":
            lines = [f"{known}: {told}" for known, told in PATHS.items()]
            return Page(200, _TEXT, "\n".join([*lines, ""]).encode())
        return Page(404, _TEXT, b"There are: " + ", ".join(PATHS).encode() + b"\n")

    async def _ready(self) -> Page:
        now = asyncio.get_running_loop().time()
        if self._looking is None or (self._looking.done() and now - self._looked_at >= READY_FOR):
            self._looked_at = now
            self._looking = asyncio.ensure_future(self._look())
        # Whoever gives up waiting does not take the answer from the others.
        found = await asyncio.shield(self._looking)
        ready = not any(trouble for _, trouble in found)
        told: dict[str, Any] = {
            "ready": ready,
            "parts": [{"part": part, "trouble": trouble} for part, trouble in found],
        }
        if not ready:
            told["advice"] = "clamsmtpctl doctor tries the whole way of a message, and names the mend"
        return _json(200 if ready else 503, told)

    async def _look(self) -> list[tuple[str, str]]:
        try:
            return await self._examine()
        except Exception as error:  # noqa: BLE001 - who cannot look is not ready
            return [("clamsmtpd", f"cannot look: {describe(error)}")]

    async def _messages(self, wanted: str, *, private: bool) -> Page:
        if not private:
            why = b"Messages are told of through a unix socket alone: give Admin the path of one.\n"
            return Page(403, _TEXT, why)
        found = await self._view.messages(wanted)
        return _json(200 if found or not wanted else 404, {"messages": found})


def _json(status: int, value: dict[str, Any]) -> Page:
    return Page(status, _JSON, json.dumps(value).encode() + b"\n")
