"""A small root of its own for a server whose programs look for everything at paths that were compiled in."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.support.maildir import NOBODY
from tests.support.process import Program
from tests.support.unpacked import UNPACKED

__all__ = ["Chroot"]

#: The names of the system's root that are links to /usr in most systems, and folders in some.
_MERGED = ("bin", "lib", "lib64", "sbin")


class Chroot:
    """A root in ``folder``: the system's libraries, the unpacked programs, and users that only it knows.

    Nothing in it is mounted but for the program that runs in it, in a mount namespace of its own: when that has
    ended, nothing is left to undo. It needs root.

    ``unpacked`` are folders of the unpacked packages; each takes the place of the system's. ``users`` are the names
    that the server wants to find; each is in a group of the same name.
    """

    def __init__(self, folder: Path, *, unpacked: Iterable[str], users: Sequence[str]) -> None:
        self.folder = folder
        folder.mkdir()
        # mkdir obeys the umask, and the server's other users have to come in.
        folder.chmod(0o755)
        self._mounts: dict[Path, Path] = {}
        for name in _MERGED:
            original = Path("/", name)
            if original.is_symlink():
                (folder / name).symlink_to(os.readlink(original))
            elif original.is_dir():
                self._mount(original, name)
        (libraries,) = {path.parent.name for path in (UNPACKED / "usr" / "lib").glob("*/libnss_wrapper.so")}
        for name in ("dev", "proc", "usr/bin", "usr/lib64", f"usr/lib/{libraries}"):
            if Path("/", name).is_dir():
                self._mount(Path("/", name), name)
        # On some architectures the loader is called by a name there.
        for link in Path("/usr/lib").glob("ld-linux*"):
            if link.is_symlink():
                (folder / "usr" / "lib" / link.name).symlink_to(os.readlink(link))
        for name in unpacked:
            self._mount(UNPACKED / name, name)
        for name in ("etc", "tmp", "run", "var/spool", "var/lib", "var/log"):
            self.make(name)
        (folder / "tmp").chmod(0o1777)
        (folder / "var" / "run").symlink_to("../run")
        known = {"root": 0, "nobody": NOBODY, **{user: 60_001 + number for number, user in enumerate(users)}}
        self.write("etc/passwd", "".join(f"{name}:x:{id_}:{id_}::/:/bin/sh\n" for name, id_ in known.items()))
        self.write("etc/group", "".join(f"{name}:x:{id_}:\n" for name, id_ in known.items()))
        self.write("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")

    def _mount(self, original: Path, name: str) -> None:
        if not original.is_dir():
            raise FileNotFoundError(f"{original} is missing: scripts/setup test unpacks it")
        self.make(name)
        self._mounts[self.folder / name] = original

    def make(self, name: str, owner: int = 0) -> Path:
        """Make a folder with its parents; return its path outside."""
        path = self.folder / name
        for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
            missing.mkdir()
            missing.chmod(0o755)
        os.chown(path, owner, owner)
        return path

    def write(self, name: str, text: str) -> Path:
        """Write a file that everyone may read; return its path outside."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def bring(self, original: Path, name: str) -> None:
        """Copy a file that only the root user may read."""
        copy = self.folder / name
        shutil.copyfile(original, copy)
        copy.chmod(0o600)

    def start(self, command: Sequence[str], *, output: Path, environment: Mapping[str, str] | None = None) -> Program:
        """Start a command, named by its path inside."""
        lines = [
            "set -e",
            *(shlex.join(["mount", "--rbind", str(original), str(place)]) for place, original in self._mounts.items()),
            shlex.join(["exec", "chroot", str(self.folder), *command]),
        ]
        return Program(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)],
            output=output,
            environment=environment,
        )
