"""Builds the documentation with Sphinx: HTML into .build/docs, the manual pages into man/. A warning is an error.

The manual pages are kept with the source, so that a package can be built without Sphinx. What docutils writes differs
from version to version, so they are held against the text that they were made from, by a digest in their first line,
and not against what another Sphinx would write. With ``--check`` nothing in man/ is written.
"""

from __future__ import annotations

import hashlib
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MAN = ROOT / "man"
BUILD = ROOT / ".build"


def sphinx(builder: str, target: Path) -> bool:
    """Run Sphinx; whether it had nothing to complain of."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder]
    return subprocess.run([*command, "-d", BUILD / "doctrees", DOCS, target], check=False, cwd=ROOT).returncode == 0


def sources() -> dict[str, str]:
    """Return for each manual page, by the name of its file, the digest of what it is made from."""
    configuration = runpy.run_path(str(DOCS / "conf.py"))
    found = {}
    for document, name, description, _, section in configuration["man_pages"]:
        text = (DOCS / f"{document}.md").read_bytes()
        about = f"{name}({section}) {description} {configuration['today']} {configuration['release']}"
        found[f"{name}.{section}"] = hashlib.sha256(about.encode() + text).hexdigest()
    return found


def stamp(name: str, digest: str) -> str:
    """Return the first line of a manual page."""
    return f'.\\" Made by "make docs" from docs/reference/manual/{name}.md ({digest[:16]}): change that.\n'


def tidy(page: str) -> str:
    """Take out what docutils writes and mandoc warns of: a paragraph that begins right behind a heading."""
    return re.sub(r"^(\.S[HS] .*\n)\.sp\n", r"\1", page, flags=re.MULTILINE)


def stale() -> dict[str, str]:
    """Return those manual pages that are not made from the text that there is now, with their first lines."""
    lines = {name: stamp(name, digest) for name, digest in sources().items()}
    return {name: line for name, line in lines.items() if not (MAN / name).exists() or not _begins(MAN / name, line)}


def _begins(path: Path, line: str) -> bool:
    with path.open() as page:
        return page.readline() == line


def main() -> int:
    """Build all, or check all."""
    good = sphinx("html", BUILD / "docs")
    outdated = stale()
    if "--check" in sys.argv[1:]:
        for name in outdated:
            print(f"man/{name} is out of date: run make docs")
        return 0 if good and not outdated else 1
    with tempfile.TemporaryDirectory(prefix="clamsmtpd-docs-") as folder:
        good = sphinx("man", Path(folder)) and good
        for name, line in outdated.items():
            # Its own first two lines say which version of docutils wrote it.
            page = (Path(folder) / name).read_text().split("\n", 2)[2]
            (MAN / name).write_text(line + tidy(page))
            print(f"wrote man/{name}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
