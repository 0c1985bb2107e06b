"""What runs a coroutine for a test, on one kind of event loop after the other."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Run"]

Run = Callable[[Coroutine[Any, Any, Any]], Any]
