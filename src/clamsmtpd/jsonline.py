"""JSON objects on one line with a bound: what strangers choose is cut until they fit."""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["CUT", "json_line"]

#: The field, true, of an object in which something is cut.
CUT = "cut"

# Characters of a value, as it is written: each tried only if there was too much with the one before.
_LIMITS = (1500, 700, 300, 120, 60, 30)

_MARK = " ..."

# So both halves of a pair are written, and one alone. To look at each text before costs more than all the rest.
_SURROGATE = "\\ud"


def json_line(fields: Mapping[str, Any], most: int) -> str:
    """Return ``fields`` as one JSON object in ASCII, on one line of at most ``most`` characters.

    Where it is too long, long texts are cut, and end in " ..."; :data:`CUT` says so. Texts hold no half of a surrogate
    pair, which JSON can write and many a reader refuses (RFC 8259 section 8.2). No text is cut to less than some 20
    characters, so that ``most`` holds for as many fields as our records have, and not for any number.
    """
    line = json.dumps(fields)
    if _SURROGATE in line:
        line = json.dumps(_whole(fields))
    if len(line) <= most:
        return line
    for limit in _LIMITS:
        line = json.dumps({**_cut(_whole(fields), limit), CUT: True})
        if len(line) <= most:
            break
    return line


def _whole(value: Any) -> Any:  # noqa: ANN401 - whatever JSON knows
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {name: _whole(item) for name, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value


def _cut(value: Any, limit: int) -> Any:  # noqa: ANN401 - as above
    if isinstance(value, str):
        return value if len(json.dumps(value)) <= limit else _shorten(value, limit)
    if isinstance(value, dict):
        return {name: _cut(item, limit) for name, item in value.items()}
    return [_cut(item, limit) for item in value] if isinstance(value, list) else value


def _shorten(text: str, limit: int) -> str:
    # One character may be written as twelve: an escaped surrogate pair.
    room = limit - len(json.dumps(_MARK))
    end = bisect.bisect_right(range(room + 1), room, key=lambda length: len(json.dumps(text[:length])) - len('""'))
    return text[: end - 1] + _MARK
