"""The parts of a message: the same in every cutting, never more than there is, and with names that anybody may see."""

from __future__ import annotations

from clamsmtpd.parts import NAME_MAX
from fuzz.octets import cuttings
from tests.support import mime

__all__ = ["WORDS", "one_input"]

WORDS = (
    *(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n", b"\r\n--b\r\n", b"\r\n--b--\r\n", b"\n--b \n"),
    *(b"Content-Type: message/rfc822\r\n\r\n", b"Content-Type: multipart/digest; boundary=bb\r\n\r\n--bb\r\n\r\n"),
    *(b"Content-Disposition: attachment; filename=", b"filename*=utf-8''%41", b"filename*0*=", b"filename*1=", b'"'),
    *(b"Content-Transfer-Encoding: base64\r\n", b"Content-Transfer-Encoding: quoted-printable\r\n", b"QUJD", b"=41"),
    *(b"=?utf-8?b?QQ==?=", b"\r\n\r\n", b"\r\n ", b"; name=", b"../", b"\xe2\x80\xae", b"From x\n", b"=\r\n", b"--"),
    *(b"x" * 500, b" " * 500),
)


def one_input(data: bytes) -> None:
    """Read the octets as a message in all cuttings."""
    octets, ways = cuttings(data)
    found = [mime.read(way) for way in ways]
    assert sum(len(content) for _, content in found[0]) <= len(octets)
    assert [part.number for part, _ in found[0]] == list(range(1, len(found[0]) + 1))
    for part, _ in found[0]:
        assert len(part.name) <= NAME_MAX
        assert part.label.isprintable()
        assert "/" not in part.name
    # What is broken in quoted-printable may be read in more than one way.
    whole = b"quoted-printable" in octets.lower()
    for other in found[1:]:
        assert [part for part, _ in other] == [part for part, _ in found[0]]
        assert whole or other == found[0]
