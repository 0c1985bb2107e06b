"""Pieces of Markdown, as MyST and GitHub both read it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

__all__ = ["between_markers", "block", "definitions", "plain", "table", "wrapped"]

_BEGIN = "generated from the code: begin"
_END = "generated from the code: end"
_WIDTH = 116

# What would be markup anywhere, and what would be at the beginning of a line, as a comment, a list or a heading.
_MARKUP = re.compile(r"([\\`*_\[\]<>])")
_AT_THE_BEGINNING = re.compile(r"^(\d*)([%#+:=~|.)-])", re.MULTILINE)


def plain(text: str) -> str:
    """Return text that is to be read as it stands, wrapped."""
    return wrapped(_MARKUP.sub(r"\\\1", text))


def wrapped(text: str) -> str:
    """Return a paragraph of Markdown on lines that are not too long, none of which begins with what would be markup."""
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return _AT_THE_BEGINNING.sub(r"\1\\\2", "\n".join(lines))


def block(text: str) -> str:
    """Return text that keeps its lines, such as examples of commands."""
    return f"```text\n{text}\n```"


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """Return a list of terms, which are Markdown, and of what is said about each, which is too."""
    return "\n\n".join(f"{term}\n:{textwrap.indent(told, '    ')[1:]}" for term, told in items)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a cell is one line of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def between_markers(text: str, generated: dict[str, str]) -> str:
    """Replace what stands between the markers of each name in ``generated``. Raises ValueError where they are missing.

    The markers are comments: ``<!-- NAME generated from the code: begin -->``, and the same with ``end``.
    """
    for name, content in generated.items():
        begin, end = f"<!-- {name} {_BEGIN} -->\n", f"<!-- {name} {_END} -->\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the markers for {name} are missing")
        text = f"{before}{begin}\n{content}\n\n{end}{after}"
    return text
