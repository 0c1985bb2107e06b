"""What the parts of a message are, however it is cut, and whatever a stranger makes of it."""

from __future__ import annotations

import email
import time
from collections.abc import Iterator
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd import parts
from clamsmtpd.parts import DEPTH_MAX, NAME_MAX, Part, Parts, clean_name
from tests.support import mime

PIECE = 65536


def read(text: bytes, size: int = PIECE) -> list[tuple[Part, bytes]]:
    return mime.read(text[at : at + size] for at in range(0, len(text), size))


def names(text: bytes) -> list[str]:
    return [part.name for part, _ in read(text)]


def multipart(*inner: bytes, boundary: bytes = b"b", subtype: bytes = b"mixed") -> bytes:
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in inner)
    head = b"Content-Type: multipart/" + subtype + b"; boundary=" + boundary + b"\r\n\r\n"
    return head + body + b"--" + boundary + b"--\r\n"


def named(field: bytes) -> bytes:
    return b"Content-Type: application/zip\r\n" + field + b"\r\n\r\nx"


# ---- structure


def test_a_message_without_mime_is_one_part() -> None:
    ((part, octets),) = read(b"Subject: x\r\n\r\ntext\r\n")
    assert (part, octets) == (Part(1, "", "text/plain"), b"text\r\n")
    assert part.label == "part 1 (text/plain)"


def test_nothing_is_one_part_without_octets() -> None:
    assert read(b"") == [(Part(1, "", "text/plain"), b"")]


def test_a_header_section_alone_is_one_part_without_octets() -> None:
    assert read(b"Subject: x") == [(Part(1, "", "text/plain"), b"")]


def test_where_no_header_field_stands_the_text_begins() -> None:
    assert read(b"From x\nSubject: x\nno field\n")[0][1] == b"no field\n"


def test_parts_of_parts_come_in_their_order_without_the_line_end_before_the_boundary() -> None:
    inner = multipart(b"Content-Type: text/html\r\n\r\n<p>\r\n", b"\r\nplain", boundary=b"inner")
    found = read(multipart(inner, b"Content-Type: a/b; name=c\r\n\r\nlast") + b"epilogue")
    assert found == [
        (Part(1, "", "text/html"), b"<p>\r\n"),
        (Part(2, "", "text/plain"), b"plain"),
        (Part(3, "c", "a/b"), b"last"),
    ]


def test_bare_line_feeds_are_line_ends_too() -> None:
    assert [octets for _, octets in read(multipart(b"\r\none\r\n", b"\r\ntwo").replace(b"\r", b""))] == [
        b"one\n",
        b"two",
    ]


def test_a_boundary_of_an_outer_multipart_ends_the_inner_ones() -> None:
    inner = b"Content-Type: multipart/mixed; boundary=inner\r\n\r\n--inner\r\n\r\none"
    assert [octets for _, octets in read(multipart(inner, b"\r\ntwo"))] == [b"one", b"two"]


def test_a_boundary_ends_a_header_section() -> None:
    assert [octets for _, octets in read(multipart(b"Content-Type: a/b", b"\r\ntwo"))] == [b"", b"two"]


def test_boundaries_behind_each_other_have_no_part_between_them() -> None:
    assert [octets for _, octets in read(multipart(b"--b\r\n\r\none"))] == [b"one"]


def test_what_only_begins_like_a_boundary_is_text() -> None:
    text = b"--bb\r\n --b\r\n--b x\r\n--" + b"b" * 2000 + b"\r\n-\r\n--\r\n"
    assert read(multipart(b"\r\n" + text))[0][1] == text
    assert read(multipart(b"\r\n" + text), 1)[0][1] == text


def test_white_space_may_follow_a_boundary_and_the_end_may_be_missing() -> None:
    text = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b \t\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--"
    assert [octets for _, octets in read(text)] == [b"one", b"two"]
    assert [octets for _, octets in read(text[:-7])] == [b"one", b"two"]


def test_a_message_in_a_message_is_walked_into() -> None:
    inner = multipart(named(b"Content-Disposition: attachment; filename=a.zip"), boundary=b"inner")
    found = read(multipart(b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n" + inner, b"\r\ntwo"))
    assert found == [(Part(1, "a.zip", "application/zip"), b"x"), (Part(2, "", "text/plain"), b"two")]


def test_one_that_is_encoded_is_a_part() -> None:
    encoded = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nQTogYg=="
    assert read(encoded) == [(Part(1, "", "message/rfc822"), b"A: b")]


def test_what_a_digest_holds_are_messages() -> None:
    found = read(multipart(b"\r\nContent-Type: a/b\r\n\r\none", subtype=b"digest"))
    assert found == [(Part(1, "", "a/b"), b"one")]


@pytest.mark.parametrize("boundary", [b"", b"; boundary=" + b"b" * 501, b"; boundary*=b; boundary*0=b"])
def test_a_multipart_without_a_boundary_that_can_be_is_a_part(boundary: bytes) -> None:
    text = b"Content-Type: multipart/mixed" + boundary + b"\r\n\r\n--z\r\n\r\ntext\r\n"
    assert read(text) == [(Part(1, "", "multipart/mixed"), b"--z\r\n\r\ntext\r\n")]


def test_types_that_are_none_become_text() -> None:
    for bad in (b"zip", b"a/b c/d", b"a/\xff", b"a/" + b"b" * 300, b"a/b*=x"):
        assert read(b"Content-Type: " + bad + b"\r\n\r\n")[0][0].media_type in ("text/plain", "a/b*=x")


# ---- encodings


@pytest.mark.parametrize("size", [1, 2, 3, 5, PIECE])
@pytest.mark.parametrize(
    ("encoding", "text", "octets"),
    [
        (b"base64", b"QUJD\r\nRE VG\r\n", b"ABCDEF"),
        (b"BASE64", b"QUI=", b"AB"),
        (b"base64", b"QUI", b"AB"),
        (b"base64", b"QUJDR", b"ABC"),
        (b"base64", b"QQ==\r\nno more", b"A"),
        (b"quoted-printable", b"a=3D=\r\nb=\nc=E9\r\n", b"a=bc\xe9\r\n"),
        (b"quoted-printable", b"a=", b"a"),
        (b"7bit", b"a=3D", b"a=3D"),
        (b"x-unknown", b"QUJD", b"QUJD"),
    ],
)
def test_what_is_encoded_is_decoded(encoding: bytes, text: bytes, octets: bytes, size: int) -> None:
    assert read(b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + text, size)[0][1] == octets


# ---- names


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (b"Content-Disposition: attachment; filename=a.zip", "a.zip"),
        (b'Content-Disposition: attachment;\r\n\tfilename="a \\"b\\".zip"', 'a "b".zip'),
        (b"Content-Disposition: attachment; filename*=utf-8''%E2%82%AC%20rates", "€ rates"),
        (b"Content-Disposition: x; filename*0*=utf-8''%E2%82; filename*1*=%AC; filename*2=.zip", "€.zip"),
        (b"Content-Disposition: x; filename*=nonsense''%41", "A"),
        (b'Content-Disposition: x; filename="=?utf-8?b?4oKsLnppcA==?="', "€.zip"),
        (b'Content-Disposition: x; filename="=?nonsense?b?4oKsLnppcA==?="', ""),
        (b'Content-Disposition: x; filename="=?utf-8?b?4?="', ""),
        ("Content-Disposition: x; filename=€.zip".encode(), "€.zip"),
        (b"Content-Disposition: x; filename=\xff.zip", "\ufffd.zip"),
        (b'Content-Disposition: x; filename="..\\..\\a/b.zip"', "b.zip"),
        (b"Content-Disposition: x; filename=a\0\x1b\x7fb\xe2\x80\xaepiz.exe", "a???b?piz.exe"),
        (b"Content-Disposition: x; filename=..", ""),
        (b"Content-Disposition: x; filename*=a; filename*0=b", ""),
        (b"Content-Disposition: x\r\nContent-Disposition: x; filename=second", ""),
        (b"Content-Disposition: x", ""),
        (b"X: y\r\n filename=a", ""),
    ],
)
def test_the_name_of_a_file(field: bytes, name: str) -> None:
    assert names(named(field)) == [name]


def test_the_type_may_have_the_name() -> None:
    assert names(b"Content-Type: a/b; name=c.zip\r\n\r\n") == ["c.zip"]


def test_of_a_long_name_the_end_stays() -> None:
    name = clean_name("a" * 500 + ".pdf.exe")
    assert len(name) == NAME_MAX
    assert name.startswith("aaa")
    assert name.endswith("aaa.pdf.exe")


# ---- what is bounded


def test_a_message_too_large_is_looked_at_as_far_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "OCTETS_MAX", 100)
    found = read(multipart(b"\r\none", b"\r\n" + b"x" * 1000, b"\r\nthree"), 10)
    assert [octets for _, octets in found] == [b"one"]


def test_there_may_be_any_number_of_parts_but_not_all_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SECTIONS_MAX", 10)
    reader = Parts()
    pieces = [*reader.feed(multipart(*[b"\r\nx"] * 1000)), *reader.finish()]
    assert reader.exhausted
    assert sum(piece.last for piece in pieces) == 9


def nested(depth: int) -> bytes:
    return b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level) for level in range(depth)
    )


def test_what_is_deeper_than_anybody_nests_is_one_part() -> None:
    ((part, octets),) = read(nested(DEPTH_MAX) + multipart(b"\r\nx", boundary=b"deep"))
    assert part.media_type == "multipart/mixed"
    assert octets == b"--deep\r\n\r\nx\r\n--deep--\r\n"


HOSTILE = {
    "multiparts in multiparts": lambda: nested(100_000)[:2_000_000],
    "messages in messages": lambda: b"Content-Type: message/rfc822\r\n\r\n" * 60_000,
    "boundaries": lambda: nested(1) + b"\r\n--b0" * 300_000,
    "almost boundaries": lambda: nested(DEPTH_MAX) + b"\n--" * 600_000,
    "hyphens": lambda: nested(1) + b"\r\n" + b"-" * 2_000_000,
    "line ends, 50 boundaries open": lambda: nested(DEPTH_MAX) + b"\r\n" + b"\n" * 2_000_000,
    "header lines": lambda: b"a:\n" * 600_000,
    "a header line": lambda: b"Subject: " + b"x" * 2_000_000,
    "a folded field": lambda: b"Content-Type: x/y;" + b"\r\n a=b;" * 250_000,
    "parameters": lambda: multipart(*[b"Content-Type: x/y;" + b'a*1="' + b";" * 8000 + b"\r\n\r\n"] * 240),
    "continuations": lambda: multipart(*[b"Content-Type: x/y" + b";name*0*=a" * 800 + b"\r\n\r\n"] * 240),
    "encoded words": lambda: multipart(*[b"Content-Type: x/y; name=" + b"=?x?q?" * 1300 + b"\r\n\r\n"] * 240),
    "padding": lambda: b"Content-Transfer-Encoding: base64\r\n\r\n" + b"=" * 2_000_000,
    "escapes": lambda: b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=41" * 600_000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_two_megabytes_that_are_meant_to_stall_do_not(what: str) -> None:
    text = HOSTILE[what]()
    assert 1_500_000 < len(text) < 2_500_000
    begin = time.process_time()
    read(text, 16384)
    # By far more than was ever measured, and far less than what grows by the square takes.
    assert time.process_time() - begin < 20


# ---- whatever comes


def leaves(message: email.message.Message) -> Iterator[tuple[str, str, bytes]]:
    for part in message.walk():
        if not part.is_multipart():
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            yield part.get_content_type(), part.get_filename("") or "", payload


contents = st.one_of(
    st.tuples(st.just("text"), st.text("ab-=\n \xe9€", max_size=200), st.just("")),
    st.tuples(st.just("file"), st.binary(max_size=300), st.text("abc.é€ ", min_size=1, max_size=30).map(str.strip)),
)
sizes = st.integers(1, 200)


@given(st.lists(contents, min_size=1, max_size=5), sizes, st.booleans())
def test_of_a_message_of_the_standard_library_the_same_is_found_as_there(
    inner: list[tuple[str, str | bytes, str]], size: int, forwarded: bool
) -> None:
    message = EmailMessage()
    message.set_content("text")
    for kind, content, name in inner:
        if kind == "text":
            message.add_attachment(content, filename=name or None)
        else:
            message.add_attachment(content, maintype="application", subtype="x", filename=name or None)
    if forwarded:
        inside, message = message, EmailMessage()
        message.set_content("see")
        message.add_attachment(inside)
    text = message.as_bytes().replace(b"\n", b"\r\n")
    expected = list(leaves(email.message_from_bytes(text)))
    found = [(part.media_type, octets) for part, octets in read(text, size)]
    assert found == [(media_type, octets) for media_type, _, octets in expected]
    assert len({name for name in names(text) if name}) <= len(inner)
    assert [part.name for part, _ in read(text)] == [clean_name(part_name(part)) for part in walked(text)]


def walked(text: bytes) -> list[EmailMessage]:
    message = email.message_from_bytes(text, policy=email.policy.default)
    return [part for part in message.walk() if not part.is_multipart()]


def part_name(part: EmailMessage) -> str:
    return part.get_filename("") or ""


@given(st.binary(max_size=400), sizes)
def test_any_octets_are_a_message(octets: bytes, size: int) -> None:
    assert read(octets, size) == read(octets)


@given(st.lists(st.sampled_from([b"\r\n", b"\n", b"--b", b"--", b"-", b" ", b"x", b"Content-Type: a/b", b"\r"])), sizes)
def test_lines_of_any_kind_are_the_same_in_every_cutting(words: list[bytes], size: int) -> None:
    text = nested(1).replace(b"b0", b"b") + b"".join(words)
    assert read(text, size) == read(text)
