"""The text of a message on its way out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from clamsmtpd.connection import Connection
from clamsmtpd.spool import FileRange
from clamsmtpd.transmission import WRITE_SIZE, Transmission


class Taker(asyncio.Transport):
    """Takes what it gets, and pauses after each call if it is slow."""

    def __init__(self, *, slow: bool = False) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.slow = slow
        self.closing = False
        self.transmission: Transmission | None = None

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))
        if self.slow and self.transmission is not None:
            self.transmission.paused = True

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))


class FileTaker(Connection):
    """Takes so many octets of a file at once."""

    __slots__ = ("at_once", "calls", "closing", "transmission")

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.calls: list[bytes] = []
        self.closing = False
        self.transmission: Transmission | None = None

    def is_closing(self) -> bool:
        return self.closing

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.calls.append(b"".join(list_of_data))

    def send_file(self, descriptor: int, start: int, stop: int) -> int:
        assert self.transmission is not None
        sent = min(self.at_once, stop - start)
        self.calls.append(os.pread(descriptor, sent, start))
        self.transmission.paused = start + sent < stop
        return sent


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "text"
    path.write_bytes(b"0123456789" * 100_000)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_pieces_go_out_in_one_call() -> None:
    taker = Taker()
    transmission = Transmission(taker, iter([b"head", b"field", b"", b"body", b".\r\n"]))
    assert transmission.go_on()
    assert taker.calls == [b"headfieldbody.\r\n"]
    assert transmission.sent == 16


def test_many_pieces_go_out_in_calls_that_are_not_too_large() -> None:
    taker = Taker()
    transmission = Transmission(taker, iter([b"x" * 100_000] * 7))
    assert transmission.go_on()
    assert [len(call) for call in taker.calls] == [300_000, 300_000, 100_000]
    assert transmission.sent == 700_000


def test_a_pause_is_kept_and_nothing_is_sent_twice() -> None:
    taker = Taker(slow=True)
    transmission = taker.transmission = Transmission(taker, iter([b"a" * WRITE_SIZE, b"b"]))
    assert not transmission.go_on()
    assert not transmission.go_on()
    assert taker.calls == [b"a" * WRITE_SIZE]
    transmission.paused = False
    assert not transmission.go_on()
    transmission.paused = False
    assert transmission.go_on()
    assert taker.calls == [b"a" * WRITE_SIZE, b"b"]


def test_a_file_goes_out_by_itself_as_far_as_it_is_taken(file: int) -> None:
    taker = FileTaker(400_000)
    transmission = Transmission(taker, iter([b"head", FileRange(file, 10, 1_000_000), b".\r\n"]))
    taker.transmission = transmission
    sent = []
    while not transmission.go_on():
        sent.append(transmission.sent)
        transmission.paused = False
    assert sent == [400_004, 800_004]
    assert [len(call) for call in taker.calls] == [4, 400_000, 400_000, 199_990, 3]
    assert b"".join(taker.calls) == b"head" + (b"0123456789" * 100_000)[10:] + b".\r\n"


def test_a_transport_that_takes_no_files_gets_them_in_pieces(file: int) -> None:
    taker = Taker(slow=True)
    transmission = taker.transmission = Transmission(taker, iter([FileRange(file, 5, 700_000), b".\r\n"]))
    while not transmission.go_on():
        transmission.paused = False
    assert max(len(call) for call in taker.calls) == WRITE_SIZE
    assert b"".join(taker.calls) == (b"0123456789" * 100_000)[5:700_000] + b".\r\n"


def test_a_file_that_has_become_shorter_is_a_fault(file: int) -> None:
    transmission = Transmission(Taker(), iter([FileRange(file, 0, 1_000_001)]))
    with pytest.raises(OSError, match="ended early"):
        transmission.go_on()


def test_a_transport_that_is_full_from_before_is_not_asked_again_and_again(file: int) -> None:
    class Full(FileTaker):
        def send_file(self, descriptor: int, start: int, stop: int) -> int:
            self.calls.append(b"")
            assert len(self.calls) < 3, "it would go on for ever"
            return 0

    taker = Full(0)
    transmission = Transmission(taker, iter([FileRange(file, 0, 100)]))
    assert not transmission.go_on()
    assert transmission.paused
    assert taker.calls == [b""]


def test_nothing_more_is_sent_to_a_transport_that_is_closing(file: int) -> None:
    taker = FileTaker(0)
    transmission = taker.transmission = Transmission(taker, iter([FileRange(file, 0, 100)]))
    taker.closing = True
    assert not transmission.go_on()
    assert transmission.paused
