"""Where scripts/setup unpacks the packages that are not installed."""

from __future__ import annotations

from pathlib import Path

__all__ = ["UNPACKED"]

UNPACKED = Path(__file__).resolve().parents[2] / ".build" / "root"
