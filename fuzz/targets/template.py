"""Header templates: whatever passes the check of the settings makes header fields, and nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from clamsmtpd.headers import HeaderTemplate
from clamsmtpd.templates import check_header
from tests.support import plain

__all__ = ["WORDS", "one_input"]

_NOON = datetime(2026, 11, 3, 12, 5, 9, tzinfo=UTC)

WORDS = (
    *(b"X-Virus-Scanned: ", b"Received: from %i\\r\\n\\tby %l; %d", b"%i", b"%l", b"%d", b"%%", b"\\r\\n\\t", b"\\n"),
    *(b"\\n ", b"\\\\", b"%\\r", b": ", b"\\t", b"\t", "é".encode(), b"\xff", b"x" * 500),
)


def one_input(data: bytes) -> None:
    """Take the octets for a template."""
    # As the settings file is read.
    text = data.decode("utf-8", "surrogateescape").strip()
    try:
        template = HeaderTemplate(check_header(text))
    except ValueError as error:
        assert str(error)
        return
    for client, local in (("192.0.2.1", "2001:db8::1"), ("2001:db8::2", "")):
        field = template.render(client=client, local=local, clock=lambda: _NOON)
        if not text:
            assert field == b""
            return
        assert field.endswith(b"\r\n")
        lines = field[:-2].split(b"\r\n")
        for line in lines:
            assert not {0, 10, 13} & set(line)
        assert not lines[0].startswith((b" ", b"\t"))
        # In front of a text, all of it belongs to the header section, and in the end stands what stood there.
        _, end, _ = plain.header_section(field + b"\r\ntext\r\n")
        assert end == len(field)
        assert template.on_top == (re.match(rb"received:", field, re.IGNORECASE) is not None)
