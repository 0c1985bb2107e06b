"""The lines that the daemon may log: those that a call in its source makes. Whatever else is there is a fault."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["known_forms", "unknown_lines"]

_SOURCE = Path(__file__).resolve().parent.parent / "src" / "clamsmtpd"

_PREFIX = "clamsmtpd: "
#: What stands in front of the last line of a kind of which others were left out.
_MORE = re.compile(r"[\d,]+ more like this in \d+ s, the last one: ")
#: What every line about a connection begins with.
_TAG = "[0-9A-F]{6}: "
_PLACE = re.compile(r"%(?:\(\w+\))?[-#0 +]*\d*(?:\.\d+)?([%a-zA-Z])")
_VALUES = {"d": r"-?\d+", "g": r"[-+.e\d]+", "%": "%"}

#: Functions that log, by their names, or have something logged: a form too many does less harm than one too few.
_LOGS = re.compile(r"log|complain|warn|notice|tell|told|report|critical|error|info|debug")

#: Lines that are of a known form, and faults all the same.
_FAULTS = re.compile(r"internal error|traceback", re.IGNORECASE)


def known_forms(source: Path = _SOURCE) -> list[str]:
    """Return a regular expression for each form of line that the modules in ``source`` log.

    A form with nothing but a value in it would match anything and is not among them, except behind a
    connection's id.
    """
    found = {_TAG + ".*"}
    for path in source.rglob("*.py"):
        for template in _templates(ast.parse(path.read_text())):
            if _PLACE.sub("", template).strip(" :;,"):
                found.add(_expression(template))
    return sorted(found)


def _templates(module: ast.Module) -> Iterator[str]:
    """Yield every string that is, or may become, the format of a log line."""
    # Those that have a name of their own.
    named: dict[str, list[str]] = {}
    for statement in module.body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    named[target.id] = list(_strings(statement.value))
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and _LOGS.search(ast.unparse(node.func)):
            # In front of the format there may be a level.
            for argument in node.args[:2]:
                yield from _strings(argument)
                for part in ast.walk(argument):
                    if isinstance(part, ast.Name):
                        yield from named.get(part.id, [])


def _strings(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _expression(template: str) -> str:
    parts, at = [], 0
    for place in _PLACE.finditer(template):
        parts += [re.escape(template[at : place.start()]), _VALUES.get(place.group(1), ".*")]
        at = place.end()
    return "".join([*parts, re.escape(template[at:])])


def unknown_lines(lines: Iterable[str], forms: Iterable[str]) -> list[str]:
    """Return the lines that are of no known form, and those that tell of an error within the daemon."""
    known = re.compile("|".join(f"(?:{form})" for form in forms))
    unknown = []
    for line in lines:
        start = len(_PREFIX)
        if more := _MORE.match(line, start):
            start = more.end()
        if not line.startswith(_PREFIX) or not known.fullmatch(line, start) or _FAULTS.search(line):
            unknown.append(line)
    return unknown
