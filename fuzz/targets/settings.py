"""The settings file: settings or one line that says what is wrong, whatever is in it, and however it is laid out."""

from __future__ import annotations

import atexit
import os
import re
import tempfile

from clamsmtpd.config import OLD_NAMES, SETTINGS, ConfigError, Loaded, load
from clamsmtpd.headers import HeaderTemplate

__all__ = ["WORDS", "one_input"]

# UTF-8's byte order mark.
_MARK = b"\xef\xbb\xbf"

WORDS = (
    *(f"\n{setting.name}: {setting.default or ''}".encode() for setting in SETTINGS),
    *(f"\n{name}: ".encode() for name in OLD_NAMES),
    *(
        b"OutAddress: 10026\n",
        b"on\n",
        b"\n#",
        b":",
        b"lmtp:",
        b"[::1]:25",
        b"/run/x owner=a:b mode=0660",
        b"192.0.2.0/24",
    ),
    *(b"verify", b"bounce", _MARK, b"\0", b"\r\n", b"\xff", b"\x1b[2J", "\u2028".encode(), b"99999999999999999999999"),
)


class _File:
    """A settings file that is written anew for each input."""

    def __init__(self) -> None:
        descriptor, self.path = tempfile.mkstemp(prefix="clamsmtpd-fuzz-", dir=_memory())
        os.close(descriptor)
        atexit.register(self._remove)

    def load(self, octets: bytes) -> Loaded | str:
        """Return what the octets come to; the name of the file is left out of messages."""
        with open(self.path, "wb") as file:
            file.write(octets)
        try:
            return load(self.path)
        except ConfigError as error:
            message = str(error)
            assert message.startswith(self.path + ":")
            return message.removeprefix(self.path)

    def _remove(self) -> None:
        os.unlink(self.path)


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


_FILES: list[_File] = []


def one_input(data: bytes) -> None:
    """Read the octets as a settings file, and again in another layout that says the same."""
    if data in (_MARK[:1], _MARK[:2]):
        # Python takes the beginning of a mark that is all there is for nothing.
        return
    if not _FILES:
        _FILES.append(_File())
    (file,) = _FILES
    outcome = file.load(data)
    again = file.load(_laid_out(data))
    if isinstance(outcome, str):
        _check_line(outcome)
        assert isinstance(again, str)
        assert _essence(again) == _essence(outcome)
        return
    assert isinstance(again, Loaded)
    assert again.settings == outcome.settings
    assert len(again.warnings) == len(outcome.warnings)
    for warning in outcome.warnings:
        _check_line(warning)
    settings = outcome.settings
    assert (settings.out_address is None) == settings.transparent_proxy
    HeaderTemplate(settings.header)
    for path in (settings.pid_file, settings.temp_directory, settings.tls_certificate, settings.tls_key):
        assert path is None or (path.startswith("/") and "\0" not in path)


def _laid_out(octets: bytes) -> bytes:
    """Return a file that says the same with more blanks, lines and capitals."""
    text = octets.removeprefix(_MARK)
    lines = []
    for line in text.split(b"\n"):
        name, colon, value = line.partition(b":")
        comment = line.strip(b" \t\r\f\v").startswith(b"#")
        lines.append(line if comment or not colon else b" \t" + name.upper() + b" \t: " + value + b" \r")
    return b"# one more\n\n" + b"\n  \n".join(lines)


def _essence(message: str) -> str:
    """Leave away what the layout may change of a message that quotes a line: its number, blanks and capitals."""
    return re.sub(r"[\s?]", "", message.lower().partition(": ")[2])


def _check_line(text: str) -> None:
    assert text
    assert text.isprintable()
