"""Writes the parts of the documentation that come from the code's own tables, so that they cannot lie.

Without arguments the files are written; with ``--check`` it is only told whether they are up to date.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from clamsmtpd.config import SETTINGS, Setting
from clamsmtpd.smtp.capabilities import OURS, PASSED
from tests.support import faults

ROOT = Path(__file__).resolve().parent.parent

BEGIN = "generated from the code: begin"
END = "generated from the code: end"


def shown_default(setting: Setting) -> str:
    """Return the default as the manual shows it."""
    return setting.shown_default or setting.default or "none"


def mdoc_text(text: str) -> str:
    """Break plain text into lines for mdoc(7), a sentence on each, and quote what roff would take for its own."""
    lines = text.replace("\\", "\\e").replace(". ", ".\n").split("\n")
    return "\n".join("\\&" + line if line[:1] in ".'" else line for line in lines)


def manual_settings() -> str:
    """Return the list of settings for clamsmtpd.conf(5)."""
    items = []
    for setting in SETTINGS:
        default = mdoc_text(shown_default(setting))
        items.append(f".It Cm {setting.name}\n{mdoc_text(setting.help)}\n.Pp\nDefault: {default}")
    return "\n".join(items)


def manual_keywords(keywords: Mapping[bytes, str]) -> str:
    """Return a list of EHLO keywords for clamsmtpd(8)."""
    return "\n".join(f".It Li {keyword.decode()}\n{mdoc_text(reason)}" for keyword, reason in keywords.items())


def sample() -> str:
    """Return the sample settings file."""
    parts = [
        """\
# Settings of clamsmtpd(8); clamsmtpd.conf(5) says more about each.
# A line that starts with # is a comment. Those below that could be settings show the defaults.
"""
    ]
    for setting in SETTINGS:
        help_lines = textwrap.wrap(setting.help, 96)
        value = setting.default if setting.default is not None else ""
        line = f"#{setting.name}: {value}".rstrip()
        if setting.name == "OutAddress":
            line = "OutAddress: 127.0.0.1:10026"
        parts.append("\n".join([*(f"# {text}" for text in help_lines), line, ""]))
    return "\n".join(parts)


def between_markers(text: str, comment: str, generated: dict[str, str]) -> str:
    """Replace what stands between the markers of each name in ``generated``."""
    for name, content in generated.items():
        begin, end = f"{comment} {name} {BEGIN}\n", f"{comment} {name} {END}\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"generate_docs: the markers for {name} are missing")
        text = f"{before}{begin}{content}\n{end}{after}"
    return text


def main() -> int:
    """Write or check all files."""
    manual8, manual5 = ROOT / "man/clamsmtpd.8", ROOT / "man/clamsmtpd.conf.5"
    wanted = {
        manual8: between_markers(
            manual8.read_text(), '.\\"', {"keywords": manual_keywords(PASSED), "own keywords": manual_keywords(OURS)}
        ),
        manual5: between_markers(manual5.read_text(), '.\\"', {"settings": manual_settings()}),
        ROOT / "etc/clamsmtpd.conf.sample": sample(),
        ROOT / "docs/what-happens-when.md": faults.page(),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run make docs")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
