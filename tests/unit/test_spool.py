"""Where a message waits: every octet, in memory or in a file, for the scanner and for the next hop."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import signal
import socket
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamsmtpd.spool import MEMORY_MAX, FileRange, Spool
from tests.support.spooled import wire

LARGE = MEMORY_MAX + 1
FIELD = b"X-Virus-Scanned: yes\r\n"


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def stored(directory: Path, *pieces: bytes, stuffed: bool = False, keep: bool = False) -> Spool:
    spool = Spool(str(directory), "clamsmtpd-10002A", keep=keep)
    for piece in pieces:
        spool.append(piece)
    spool.seal(stuffed=stuffed)
    return spool


def whole(descriptor: int) -> bytes:
    """Read an open file from where it stands, as clamd does."""
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read()


def unstuffed(text: bytes) -> bytes:
    """RFC 5321 section 4.5.2, line by line."""
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in text.split(b"\r\n"))


def fails(code: int) -> OSError:
    return OSError(code, os.strerror(code))


# ---- small and large -----------------------------------------------------------------------------


def test_a_small_message_touches_no_disk(tmp_path: Path) -> None:
    spool = stored(tmp_path / "not there", b"Subject: x\r\n", b"\r\ntext\r\n")
    assert spool.size == 20
    assert whole(spool.descriptor()) == b"Subject: x\r\n\r\ntext\r\n"
    name = os.readlink(f"/proc/self/fd/{spool.descriptor()}")
    assert name.startswith("/memfd:clamsmtpd-10002A"), "clamd's log shows it"
    spool.close()


def test_a_large_message_is_in_a_file_without_a_name(tmp_path: Path) -> None:
    spool = stored(tmp_path, b"a" * MEMORY_MAX, b"b")
    assert os.listdir(tmp_path) == []
    link = os.readlink(f"/proc/self/fd/{spool.descriptor()}")
    assert link.startswith(str(tmp_path))
    assert whole(spool.descriptor()) == b"a" * MEMORY_MAX + b"b"
    spool.close()


def test_the_largest_message_in_memory(tmp_path: Path) -> None:
    spool = stored(tmp_path / "not there", b"a" * MEMORY_MAX)
    assert b"".join(wire(spool, (MEMORY_MAX, b""))) == b"a" * MEMORY_MAX
    spool.close()


def test_an_empty_message(tmp_path: Path) -> None:
    spool = stored(tmp_path)
    assert spool.size == 0
    assert list(spool.pieces()) == []
    assert whole(spool.descriptor()) == b""
    assert list(wire(spool)) == []
    assert list(wire(spool, (0, FIELD))) == [FIELD]
    spool.close()


def test_every_message_has_a_file_of_its_own(tmp_path: Path) -> None:
    first, second = stored(tmp_path, b"first"), stored(tmp_path, b"second")
    assert whole(first.descriptor()) == b"first"
    assert whole(second.descriptor()) == b"second"
    first.close()
    second.close()


@pytest.mark.parametrize("size", [10, LARGE])
def test_descriptors_start_at_the_start_again_and_are_not_inherited(tmp_path: Path, size: int) -> None:
    spool = stored(tmp_path, b"x" * size)
    descriptor = spool.descriptor()
    os.lseek(descriptor, 5, os.SEEK_SET)
    assert len(whole(spool.descriptor())) == size
    assert not os.get_inheritable(descriptor)
    assert spool.descriptor() == descriptor
    spool.close()


def test_octet_by_octet(tmp_path: Path) -> None:
    text = bytes(range(256)) * 8
    spool = stored(tmp_path, *(text[at : at + 1] for at in range(len(text))))
    assert b"".join(wire(spool)) == text
    assert whole(spool.descriptor()) == text
    spool.close()


def test_memory_stays_bounded(tmp_path: Path) -> None:
    piece = (b"." + b"x" * 75 + b"\r\n") * 3360
    assert len(piece) <= 262144
    tracemalloc.start()
    try:
        spool = Spool(str(tmp_path), "large")
        for _ in range(200):
            spool.append(piece)
        spool.seal(stuffed=True)
        size = sum(len(part) for part in wire(spool, (1000, FIELD)))
        kept = os.fstat(spool.descriptor()).st_size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert spool.size == 200 * len(piece) > 52_000_000
    assert size == spool.size + len(FIELD)
    assert kept == spool.size - 200 * 3360
    assert peak < 8 * 262144
    spool.close()


# ---- the wire ------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [b"", FIELD])
def test_the_field_goes_to_every_offset(tmp_path: Path, field: bytes) -> None:
    text = b"A: 1\r\nB: 2\r\n\r\n..x\r\n"
    spool = stored(tmp_path, text[:7], text[7:], stuffed=True)
    for offset in range(len(text) + 1):
        pieces = list(wire(spool, (offset, field)))
        assert b"".join(pieces) == text[:offset] + field + text[offset:]
        assert b"" not in pieces
    spool.close()


@pytest.mark.parametrize("offset", [0, 1, 262143, 262144, 262145, 524288, 600000])
def test_the_field_goes_to_every_offset_of_a_file(tmp_path: Path, offset: int) -> None:
    text = bytes(range(256)) * 2344
    text = text[:600000]
    spool = stored(tmp_path, *(text[at : at + 100_000] for at in range(0, len(text), 100_000)))
    pieces = list(wire(spool, (offset, FIELD)))
    assert b"".join(pieces) == text[:offset] + FIELD + text[offset:]
    assert b"" not in pieces
    assert max(map(len, pieces)) <= 262144
    spool.close()


def test_reading_the_wire_leaves_the_scanner_where_it_is(tmp_path: Path) -> None:
    spool = stored(tmp_path, b"x" * LARGE)
    descriptor = spool.descriptor()
    b"".join(wire(spool, (100, FIELD)))
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    spool.close()


@pytest.mark.parametrize("offset", [0, 1, LARGE - 1, LARGE])
def test_what_is_in_a_file_is_sent_from_there(tmp_path: Path, offset: int) -> None:
    text = (bytes(range(256)) * 300)[:LARGE]
    spool = stored(tmp_path, text)
    sent = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        for part in spool.parts([(offset, FIELD)]):
            if isinstance(part, FileRange):
                at = part.start
                assert at < part.stop
                while at < part.stop:
                    count = os.sendfile(ours.fileno(), part.descriptor, at, part.stop - at)
                    at += count
                    sent.append(b"".join(iter(lambda: received(theirs), b"")))
            else:
                sent.append(part)
    assert b"".join(sent) == text[:offset] + FIELD + text[offset:]
    assert whole(spool.descriptor()) == text, "clamd finds it at its start"
    spool.close()


def received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return b""


def test_what_is_in_memory_is_octets(tmp_path: Path) -> None:
    spool = stored(tmp_path, b"one", b"two")
    assert list(spool.parts([(3, FIELD)])) == [b"one", FIELD, b"two"]
    assert list(spool.parts()) == [b"onetwo"]
    assert list(spool.parts([(6, b"")])) == [b"onetwo"]
    spool.close()


@pytest.mark.parametrize("size", [1000, 100_000], ids=["in memory", "in a file"])
def test_what_is_stored_is_not_the_buffer_that_it_came_in(tmp_path: Path, size: int) -> None:
    buffer = bytearray(b"a" * 262144)
    spool = Spool(str(tmp_path), "x")
    text = b""
    for letter in (b"a", b"b", b"c"):
        buffer[:size] = letter * size
        with memoryview(buffer) as view, view[:size] as part:
            spool.append(part)
        text += letter * size
    spool.append(bytearray(b"end"))
    buffer[:] = b"x" * len(buffer)
    buffer.clear()
    spool.seal(stuffed=False)
    assert b"".join(wire(spool)) == text + b"end"
    assert whole(spool.descriptor()) == text + b"end"
    spool.close()


# ---- all messages together -----------------------------------------------------------------------


def test_memory_of_all_messages_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clamsmtpd.spool.TOTAL_MEMORY_MAX", 2500)
    first, second, third = (Spool(str(tmp_path), "x") for _ in range(3))
    in_memory = []
    for spool in (first, second, third):
        spool.append(b"x" * 1000)
        in_memory.append(Spool.in_memory)
    third.seal(stuffed=False)
    (part,) = third.parts()
    assert not isinstance(part, bytes), "there was no room for it"
    second.append(b"y" * 501)
    in_memory.append(Spool.in_memory)
    second.seal(stuffed=False)
    assert b"".join(wire(second)) == b"x" * 1000 + b"y" * 501
    first.append(b"z" * 1500)
    in_memory.append(Spool.in_memory)
    for spool in (first, second, third):
        spool.close()
        spool.close()
        in_memory.append(Spool.in_memory)
    # The second is in a file as a whole as soon as there is no room for all of it.
    assert in_memory == [1000, 2000, 2000, 1000, 2500, 0, 0, 0]


def test_memory_of_a_message_that_failed_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(str(tmp_path), "x")
    spool.append(b"x" * 1000)

    def full(*_: object) -> int:
        raise fails(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr("clamsmtpd.spool.os.pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            spool.append(b"x" * LARGE)
    spool.close()
    assert Spool.in_memory == 0


# ---- a text that grows ---------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.one_of(
            st.lists(st.sampled_from([b"a", b".", b"\r", b"\n", b"\r\n", b"\r\n."]), max_size=6).map(b"".join),
            st.just(b"x" * 40_000 + b"\r\n"),
        )
    ),
    reads=st.lists(st.booleans()),
)
def test_a_follower_reads_the_same_whenever_it_reads(tmp_path: Path, pieces: list[bytes], reads: list[bool]) -> None:
    growth = []
    with contextlib.closing(Spool(str(tmp_path), "x")) as spool:
        follower = spool.follow(lambda: growth.append(spool.size))
        read = b""
        for number, piece in enumerate(pieces):
            spool.append(piece)
            if number < len(reads) and reads[number]:
                read += follower.read()
        complete = [follower.complete]
        spool.seal(stuffed=True)
        complete.append(follower.complete)
        while piece := follower.read():
            read += piece
        assert complete == [False, True]
        assert follower.left == 0
        assert read == unstuffed(b"".join(pieces))
    assert len(growth) == len(pieces)


def test_a_follower_takes_no_dots_that_nobody_has_stuffed(tmp_path: Path) -> None:
    # BDAT brings lines as they are: the scanner has to see what is delivered.
    text = b".a\r\n..b\r\n.c\r\n"
    with contextlib.closing(Spool(str(tmp_path), "x", raw=True)) as spool:
        follower = spool.follow(lambda: None)
        spool.append(text)
        read = follower.read()
        spool.seal(stuffed=False)
        assert read + follower.read() == b"".join(spool.pieces()) == text


def test_a_follower_of_a_file_that_shrinks(tmp_path: Path) -> None:
    with contextlib.closing(Spool(str(tmp_path), "x")) as spool:
        follower = spool.follow(lambda: None)
        spool.append(b"x" * LARGE)
        os.ftruncate(spool._fd, 0)
        with pytest.raises(OSError, match="ended early"):
            follower.read()


# ---- stuffed dots --------------------------------------------------------------------------------

STUFFED = b"..top\r\nno .dot\r\n..\r\n...\r\n\n.bare\r.bare\r\n.x\r\n"


@pytest.mark.parametrize("padding", [b"", b"p" * MEMORY_MAX + b"\r\n"])
def test_the_scanner_sees_no_stuffed_dots_and_the_next_hop_does(tmp_path: Path, padding: bytes) -> None:
    text = STUFFED + padding + STUFFED
    plain = unstuffed(text)
    spool = stored(tmp_path, text[:100], text[100:], stuffed=True)
    assert b"".join(spool.pieces()) == plain
    assert whole(spool.descriptor()) == plain
    assert b"".join(wire(spool, (7, b""))) == text
    assert whole(spool.descriptor()) == plain
    path = spool.path()
    assert Path(path).read_bytes() == plain
    assert Path(spool.quarantine()).read_bytes() == plain
    spool.close()


def test_a_dot_on_the_border_of_two_pieces_of_a_file(tmp_path: Path) -> None:
    for shift in range(4):
        text = b"x" * (262144 - shift) + b"\r\n..\r\n" + b"y" * 10 + b"\r\n"
        spool = stored(tmp_path, text, stuffed=True)
        assert whole(spool.descriptor()) == unstuffed(text)
        spool.close()


def test_a_message_in_memory_is_one_piece(tmp_path: Path) -> None:
    spool = stored(tmp_path, b"..a\r\n", b"b\r\n", b"..", b"\r\n", stuffed=True)
    assert list(spool.pieces()) == [b".a\r\nb\r\n.\r\n"]
    spool.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.lists(st.sampled_from([b"a", b".", b"\r", b"\n", b"\r\n", b"\r\n."]), max_size=6).map(b"".join)),
    offsets=st.lists(st.integers(0, 40), max_size=5),
    in_file=st.booleans(),
)
def test_any_text_in_any_pieces(tmp_path: Path, pieces: list[bytes], offsets: list[int], in_file: bool) -> None:
    padding = b"p" * LARGE if in_file else b""
    text = b"".join(pieces) + padding
    insertions = [(min(offset, len(text)), b"<%d>" % number) for number, offset in enumerate(sorted(offsets))]
    spool = stored(tmp_path, *pieces, padding, stuffed=True)
    expected = text
    for offset, octets in reversed(insertions):
        expected = expected[:offset] + octets + expected[offset:]
    assert b"".join(wire(spool, *insertions)) == expected
    assert whole(spool.descriptor()) == unstuffed(text)
    spool.close()


def test_between_far_insertions_a_file_is_sent_from_there(tmp_path: Path) -> None:
    text = b"a" * 300_000 + b"b" * 300_000
    spool = stored(tmp_path, text)
    first, field, second, *_ = spool.parts([(300_000, FIELD), (600_000, FIELD)])
    assert field == FIELD
    assert isinstance(first, FileRange)
    assert isinstance(second, FileRange)
    assert b"".join(wire(spool, (300_000, FIELD), (600_000, FIELD))) == text[:300_000] + FIELD + text[300_000:] + FIELD
    spool.close()


@pytest.mark.parametrize("padding", [0, LARGE], ids=["in memory", "in a file"])
def test_a_part_of_the_text_can_be_read(tmp_path: Path, padding: int) -> None:
    spool = stored(tmp_path, b"one", b"two", b"p" * padding)
    assert spool.read(1, 4) == b"netw"
    assert spool.read(4, 2) == b"wo"
    assert spool.read(6 + padding, 10) == b""
    assert spool.read(0, 1 << 30) == b"onetwo" + b"p" * padding
    spool.close()


# ---- files with a name ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, LARGE])
def test_quarantine_is_for_nobody_else(tmp_path: Path, size: int) -> None:
    spool = stored(tmp_path, b"v" * size)
    mask = os.umask(0)
    try:
        kept = Path(spool.quarantine())
    finally:
        os.umask(mask)
    spool.close()
    assert kept.parent == tmp_path
    assert re.fullmatch(r"virus\.[A-Za-z0-9]{6}", kept.name)
    assert kept.read_bytes() == b"v" * size
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_quarantine_names_differ(tmp_path: Path) -> None:
    spool = stored(tmp_path, b"v")
    assert len({spool.quarantine() for _ in range(50)}) == 50
    spool.close()


def names(monkeypatch: pytest.MonkeyPatch, letters: str) -> None:
    """Let the random letters be these."""
    source = iter(letters)
    monkeypatch.setattr("clamsmtpd.spool.secrets.choice", lambda _: next(source))


def test_quarantine_takes_another_name_when_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "virus.aaaaaa").write_bytes(b"older")
    (tmp_path / "virus.bbbbbb").symlink_to(victim)
    names(monkeypatch, "aaaaaabbbbbbcccccc")
    spool = stored(tmp_path, b"new")
    assert spool.quarantine() == str(tmp_path / "virus.cccccc")
    spool.close()
    assert (tmp_path / "virus.aaaaaa").read_bytes() == b"older"
    assert not victim.exists()


def test_quarantine_gives_up_when_every_name_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "virus.aaaaaa").write_bytes(b"older")
    monkeypatch.setattr("clamsmtpd.spool.secrets.choice", lambda _: "a")
    spool = stored(tmp_path, b"new")
    with pytest.raises(FileExistsError, match=r"no free name virus\.XXXXXX"):
        spool.quarantine()
    spool.close()


def test_quarantine_is_on_the_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("clamsmtpd.spool.os.fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    spool = stored(tmp_path, b"v" * 10)
    spool.quarantine()
    assert synced == [10, 10], "the text, and then its name"
    spool.path()
    assert synced == [10, 10], "what is only for clamd need not be"
    spool.close()


def without_unnamed_files(monkeypatch: pytest.MonkeyPatch, code: int = errno.EOPNOTSUPP) -> None:
    real = os.open

    def no_unnamed(path: str, flags: int, mode: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise fails(code)
        return real(path, flags, mode)

    monkeypatch.setattr("clamsmtpd.spool.os.open", no_unnamed)


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("call", ["fsync", "pwrite", "fchmod"])
def test_a_file_that_cannot_be_completed_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, unnamed: bool
) -> None:
    spool = stored(tmp_path, b"v" * 10)
    if not unnamed:
        without_unnamed_files(monkeypatch)

    def full(*_: object) -> int:
        raise fails(errno.ENOSPC)

    monkeypatch.setattr(f"clamsmtpd.spool.os.{call}", full)
    with pytest.raises(OSError, match="No space left"):
        spool.quarantine()
    assert os.listdir(tmp_path) == []
    spool.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPERM])
def test_a_file_that_cannot_be_given_a_name_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise fails(code)

    spool = stored(tmp_path, b"v" * 10)
    monkeypatch.setattr("clamsmtpd.spool.os.link", refuse)
    with pytest.raises(OSError, match=re.escape(os.strerror(code))):
        spool.quarantine()
    assert os.listdir(tmp_path) == []
    spool.close()


def test_a_name_that_may_be_lost_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_fd: int) -> None:
        if os.listdir(tmp_path):
            raise fails(errno.EIO)

    spool = stored(tmp_path, b"v" * 10)
    monkeypatch.setattr("clamsmtpd.spool.os.fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        spool.quarantine()
    assert os.listdir(tmp_path) == []
    spool.close()


@pytest.mark.parametrize("size", [10, LARGE])
def test_not_even_a_kill_leaves_half_a_file(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def killed(descriptor: int, data: bytes, start: int) -> int:
        real(descriptor, data[:5], start)
        os.kill(os.getpid(), signal.SIGKILL)
        return 5

    spool = stored(tmp_path, b"v" * size)
    if (child := os.fork()) == 0:
        monkeypatch.setattr("clamsmtpd.spool.os.pwrite", killed)
        spool.quarantine()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert os.listdir(tmp_path) == []
    spool.close()


@pytest.mark.parametrize("missing", ["unnamed files", "/proc"])
def test_quarantine_works_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing == "/proc":
        monkeypatch.setattr("clamsmtpd.spool._OWN_DESCRIPTORS", f"{tmp_path}/missing")
    else:
        without_unnamed_files(monkeypatch)
    (tmp_path / "virus.aaaaaa").write_bytes(b"older")
    names(monkeypatch, "aaaaaabbbbbb")
    spool = stored(tmp_path, b"v" * 10)
    path = Path(spool.quarantine())
    spool.close()
    assert path.name == "virus.bbbbbb"
    assert path.read_bytes() == b"v" * 10
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (tmp_path / "virus.aaaaaa").read_bytes() == b"older"


def test_without_unnamed_files_every_name_may_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_unnamed_files(monkeypatch)
    (tmp_path / "virus.aaaaaa").write_bytes(b"older")
    monkeypatch.setattr("clamsmtpd.spool.secrets.choice", lambda _: "a")
    spool = stored(tmp_path, b"new")
    with pytest.raises(FileExistsError, match=r"no free name virus\.XXXXXX"):
        spool.quarantine()
    spool.close()


def test_quarantine_in_a_directory_that_has_become_a_link(tmp_path: Path) -> None:
    """What it leads to decides, as for everything; who may do that is looked at when the daemon starts."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "elsewhere").mkdir()
    spool = stored(tmp_path / "spool", b"v" * 10)
    (tmp_path / "spool").rmdir()
    with pytest.raises(FileNotFoundError):
        spool.quarantine()
    (tmp_path / "spool").symlink_to("elsewhere")
    assert Path(spool.quarantine()).read_bytes() == b"v" * 10
    assert len(os.listdir(tmp_path / "elsewhere")) == 1
    spool.close()


def test_quarantine_needs_its_directory(tmp_path: Path) -> None:
    spool = stored(tmp_path / "not there", b"v")
    with pytest.raises(FileNotFoundError):
        spool.quarantine()
    spool.close()


def test_the_file_for_clamd_is_for_the_group_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spool = stored(Path(), b"text\r\n")
    mask = os.umask(0o077)
    try:
        path = Path(spool.path())
    finally:
        os.umask(mask)
    assert path.is_absolute(), "clamd works in another directory"
    assert path.read_bytes() == b"text\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert spool.path() == str(path)
    spool.close()
    assert os.listdir(tmp_path) == []


def test_somebody_else_may_have_removed_it(tmp_path: Path) -> None:
    spool = stored(tmp_path, b"text\r\n")
    os.unlink(spool.path())
    spool.close()


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, LARGE])
def test_closing_twice_is_closing_once(tmp_path: Path, size: int) -> None:
    spool = stored(tmp_path, b"." * size, stuffed=True)
    spool.descriptor()
    spool.path()
    spool.close()
    spool.close()
    assert os.listdir(tmp_path) == []
    assert spool.size == 0


@pytest.mark.parametrize("size", [0, 10, LARGE])
def test_debug_files_stay(tmp_path: Path, size: int) -> None:
    spool = stored(tmp_path, b"t" * size, keep=True)
    spool.path()
    spool.close()
    spool.close()
    (kept,) = tmp_path.iterdir()
    assert re.fullmatch(r"clamsmtpd\.[A-Za-z0-9]{6}", kept.name)
    assert kept.read_bytes() == b"t" * size
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_debug_file_that_cannot_stay_is_told_and_leaks_nothing(tmp_path: Path) -> None:
    spool = stored(tmp_path / "not there", b"text", keep=True)
    spool.descriptor()
    with pytest.raises(FileNotFoundError):
        spool.close()
    spool.close()


# ---- faults of the disk --------------------------------------------------------------------------


def test_a_missing_directory_is_told_when_it_is_needed(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "not there"), "x")
    with pytest.raises(FileNotFoundError):
        spool.append(b"x" * LARGE)
    spool.close()


def test_half_a_message_gets_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(str(tmp_path), "x")
    spool.append(b"x" * LARGE)
    real = os.pwrite
    left = 5

    def filling(descriptor: int, data: bytes, start: int) -> int:
        nonlocal left
        if not left:
            raise fails(errno.ENOSPC)
        left -= min(left, len(data))
        return real(descriptor, data[:5], start)

    with monkeypatch.context() as patch:
        patch.setattr("clamsmtpd.spool.os.pwrite", filling)
        with pytest.raises(OSError, match="No space left"):
            spool.append(b"0123456789")
    spool.append(b"there is space again")
    with pytest.raises(OSError, match="not whole"):
        spool.seal(stuffed=False)
    spool.close()


def test_a_write_may_take_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr("clamsmtpd.spool.os.pwrite", lambda fd, data, start: real(fd, data[:100_000], start))
    spool = stored(tmp_path, b"x" * LARGE)
    assert whole(spool.descriptor()) == b"x" * LARGE
    spool.close()


def test_a_file_that_shrinks_is_no_shorter_message(tmp_path: Path) -> None:
    spool = stored(tmp_path, b"x" * LARGE)
    os.ftruncate(spool.descriptor(), 10)
    with pytest.raises(OSError, match="ended early"):
        b"".join(wire(spool))
    spool.close()


def test_no_space_for_the_unstuffed_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = stored(tmp_path, b"..\r\n", stuffed=True)

    def full(*_: object) -> int:
        raise fails(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr("clamsmtpd.spool.os.pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            spool.descriptor()
    assert whole(spool.descriptor()) == b".\r\n"
    spool.close()


# ---- systems that lack something -----------------------------------------------------------------


def test_without_files_in_memory_it_is_an_unnamed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(name: str) -> int:
        raise fails(errno.EACCES)

    monkeypatch.setattr("clamsmtpd.spool.os.memfd_create", forbidden)
    spool = stored(tmp_path, b"text")
    assert whole(spool.descriptor()) == b"text"
    assert os.readlink(f"/proc/self/fd/{spool.descriptor()}").startswith(str(tmp_path))
    assert os.listdir(tmp_path) == []
    spool.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT])
def test_without_unnamed_files_the_name_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    without_unnamed_files(monkeypatch, code)
    spool = stored(tmp_path, b"x" * LARGE)
    assert os.listdir(tmp_path) == []
    assert os.fstat(spool.descriptor()).st_nlink == 0
    assert fcntl.fcntl(spool.descriptor(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    spool.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM])
def test_a_fault_that_is_no_lack_of_unnamed_files_is_told_and_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    spool = Spool(str(tmp_path), "x")
    with monkeypatch.context() as patch:
        without_unnamed_files(patch, code)
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(code)):
                spool.append(b"x" * LARGE)
        with pytest.raises(OSError, match="not whole"):
            spool.seal(stuffed=False)
    spool.close()
    again = stored(tmp_path, b"x" * LARGE)
    assert whole(again.descriptor()) == b"x" * LARGE
    again.close()


def test_a_name_that_cannot_be_removed_leaks_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: str) -> None:
        raise fails(errno.EROFS)

    without_unnamed_files(monkeypatch)
    monkeypatch.setattr("clamsmtpd.spool.os.unlink", refuse)
    spool = Spool(str(tmp_path), "x")
    with pytest.raises(OSError, match="Read-only"):
        spool.append(b"x" * LARGE)
    spool.close()


def test_a_limit_of_file_sizes_is_a_full_disk_and_no_signal(tmp_path: Path) -> None:
    """SIGXFSZ would end us: Python has it ignored (RLIMIT_FSIZE, setrlimit(2))."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    small, large, dotted = (stored(tmp_path, b"v" * size) for size in (MEMORY_MAX, LARGE, 10))
    growing = stored(tmp_path, b"v" * LARGE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        for act in (small.descriptor, small.quarantine, small.path, large.quarantine, large.path):
            with pytest.raises(OSError, match="File too large"):
                act()
        with pytest.raises(OSError, match="File too large"):
            growing.append(b"x")
        assert whole(dotted.descriptor()) == b"v" * 10
        assert os.listdir(tmp_path) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Path(large.quarantine()).stat().st_size == LARGE
    for spool in (small, large, dotted, growing):
        spool.close()


def test_any_other_fault_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise fails(errno.EACCES)

    monkeypatch.setattr("clamsmtpd.spool.os.open", denied)
    spool = Spool(str(tmp_path), "x")
    with pytest.raises(PermissionError):
        spool.append(b"x" * LARGE)
    spool.close()


@pytest.mark.parametrize("size", [0, 10, MEMORY_MAX + 10])
@pytest.mark.parametrize("stuffed", [False, True])
def test_a_share_outlives_its_spool(tmp_path: Path, size: int, stuffed: bool) -> None:
    spool = Spool(str(tmp_path), "test")
    spool.append(b"..x\r\n" + b"y" * size)
    spool.seal(stuffed=stuffed)
    share = spool.share()
    spool.close()
    assert b"".join(share.pieces()) == (b".x\r\n" if stuffed else b"..x\r\n") + b"y" * size
    share.close()
    share.close()
    assert Spool.in_memory == 0
