"""Signatures with a version: without one, nobody can tell from clamd's VERSION whether they are still the same."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile

__all__ = ["daily"]

_DATE = "25 Nov 2026 03-00 +0000"
_SECONDS = 1_795_575_600

#: It finds nothing in our mail.
_SIGNATURE = b"Other:0:*:6162636465666768696a6b6c6d6e6f\n"


def daily(version: int) -> bytes:
    """Return a database for the file ``daily.cud``, which is one that nobody has signed; only its version matters.

    It is a header of 512 octets and a compressed archive, which has to begin with these files in this order.
    """
    info = f"ClamAV-VDB:{_DATE}:{version}:1:90:X:X:tests:{_SECONDS}\n"
    info += f"daily.ndb:{len(_SIGNATURE)}:{hashlib.sha256(_SIGNATURE).hexdigest()}\n"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in (("COPYING", b"\n"), ("daily.info", info.encode()), ("daily.ndb", _SIGNATURE)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    header = f"ClamAV-VDB:{_DATE}:{version}:1:90:{'0' * 32}:X:tests:{_SECONDS}"
    return header.encode().ljust(512) + gzip.compress(archive.getvalue())
