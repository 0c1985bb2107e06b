"""The grammar of a header template: what the setting Header may say."""

from __future__ import annotations

import re

__all__ = ["check_header", "header_lines"]

# Without "%": an address or a date makes no field name.
_FIELD_NAME = re.compile(r"[!-$&-9;-~]+[ \t]*:")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t"}

# RFC 5322 section 2.1.1. What is filled in may make a line a little longer; this finds a forgotten fold.
_LINE_MAX = 998


def header_lines(template: str) -> list[str]:
    r"""Split a template at its line ends, with ``\r``, ``\n`` and ``\t`` expanded; empty lines are left away.

    A backslash in front of any other character stands for that character, as it has since 1.x.
    """
    expanded = _ESCAPE.sub(lambda found: _ESCAPES.get(found.group(1), found.group(1)), template)
    return [line for line in re.split(r"[\r\n]+", expanded.strip()) if line.strip()]


def check_header(text: str) -> str:
    """Return the template if it gives header fields (RFC 5322 section 2.2), whatever is filled in.

    Raises ValueError with what is wrong and what would be right.
    """
    if not text:
        return text
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text):
        raise ValueError("it holds a control character; write \\r, \\n or \\t")
    lines = header_lines(text)
    if not lines or not _FIELD_NAME.match(lines[0]):
        raise ValueError(f'"{text}" is no header field; write it as Name: text, with no % in the name')
    for line in lines[1:]:
        if not line.startswith((" ", "\t")) and not _FIELD_NAME.match(line):
            raise ValueError(f'the folded line "{line}" must start with a blank or \\t')
    if any(len(line.encode("utf-8", "surrogateescape")) > _LINE_MAX for line in lines):
        raise ValueError(f"a line of it has more than {_LINE_MAX} octets; fold it with \\r\\n\\t")
    return text
