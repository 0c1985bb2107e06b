"""What a hostile peer may send to make us slow: the time must grow no faster than what it sends."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from clamsmtpd.smtp.body import EndOfData, HeaderSection
from clamsmtpd.smtp.events import CloseClient, ToClient
from clamsmtpd.smtp.relay import ERRORS_MAX, Relay
from clamsmtpd.smtp.syntax import CommandLines, ReplyReader

CHUNK = 262_144


def seconds(act: Callable[[], object]) -> float:
    """Return the CPU time of ``act``, the least of three: other programs only ever add to it."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        act()
        times.append(time.process_time() - begin)
    return min(times)


def fill(pattern: bytes, size: int) -> bytes:
    return (pattern * (size // len(pattern) + 1))[:size]


@pytest.mark.parametrize(
    "pattern",
    [
        b"a\0.\r",
        b"\r\n..",
        b"\r\n.",
        b"\n.",
        b"\r.\0",
        b"\0",
        b"\r\0\0\0\0\0\0\0",
        b"\n.\0\0\0\0\0\0x",
        b".",
        b"\r\n",
        b"\r\n.\r",
    ],
)
def test_the_end_of_data(pattern: bytes) -> None:
    def read(size: int) -> Callable[[], object]:
        data = fill(pattern, size)
        return lambda: EndOfData().feed(data)

    assert seconds(read(CHUNK)) < 12 * max(seconds(read(CHUNK // 4)), 0.002)
    assert seconds(read(CHUNK)) < 0.2


@pytest.mark.parametrize("pattern", [b"A: b\r\n", b"A: b\r\n \r\n", b"A", b"A: ", b"\n", b"A:\n"])
def test_the_header_section(pattern: bytes) -> None:
    data = fill(pattern, CHUNK)

    def read() -> None:
        header = HeaderSection()
        for at in range(0, CHUNK, 97):
            header.feed(data[at : at + 97])

    assert seconds(read) < 0.5


def test_command_lines() -> None:
    def read() -> None:
        lines = CommandLines()
        lines.feed(b"\r\n" * (CHUNK // 2))
        while lines.next(1000) is not None:
            pass

    assert seconds(read) < 1


def test_reply_lines() -> None:
    def read() -> None:
        reader = ReplyReader()
        reader.feed(b"250 \r\n" * (CHUNK // 6))
        while reader.next() is not None:
            pass

    assert seconds(read) < 1


def test_a_client_that_sends_nothing_that_we_know_is_told_421() -> None:
    relay = Relay()
    relay.server_data(b"220 hop\r\n")
    effects = relay.client_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000)
    said = b"".join(effect.data for effect in effects if isinstance(effect, ToClient))
    assert said.count(b"500 5.5.1 ") == ERRORS_MAX
    assert said.endswith(b"421 4.7.0 Too many errors; closing\r\n")
    assert isinstance(effects[-1], CloseClient)


def test_errors_count_only_when_nothing_good_comes_between() -> None:
    relay = Relay()
    relay.server_data(b"220 hop\r\n")
    for _ in range(3 * ERRORS_MAX):
        relay.client_data(b"FOO\r\nNOOP\r\n")
        effects = relay.server_data(b"250 ok\r\n")
        assert effects == [ToClient(b"250 ok\r\n")]
