"""Finding something out with the rights of another user: that of the daemon, when root asks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from clamsmtpd.privileges import become, find_user
from clamsmtpd.values import StartError

__all__ = ["as_user"]


def as_user(name: str | None, find_out: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it finds out
    """Return what ``find_out`` returns, which JSON must know, with the rights of that user where we may have them.

    Without a name, as another user than root, or for a user that does not exist, it is done with our own.
    """
    if name is None or os.geteuid() != 0:
        return find_out()
    try:
        user = find_user(name)
    except StartError:
        return find_out()
    receive, send = os.pipe()
    # Rights are those of a process: in one of its own they can be tried on.
    if child := os.fork():
        os.close(send)
        with os.fdopen(receive, encoding="utf-8") as told:
            text = told.read()
        os.waitpid(child, 0)
        return json.loads(text) if text else find_out()
    try:
        become(user)
        with os.fdopen(send, "w", encoding="utf-8") as answer:
            json.dump(find_out(), answer)
    finally:
        # Nothing of the parent's may be done twice.
        os._exit(0)
