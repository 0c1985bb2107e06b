"""What clamd is asked, and what becomes of its answers: clean is what is beyond doubt, and nothing else."""

from __future__ import annotations

import itertools
import re
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.clamd.protocol import (
    FILDES,
    FILDES_SUBJECT,
    INSTREAM,
    STREAM_END,
    STREAM_SUBJECT,
    Replies,
    chunk_header,
    is_unknown_command,
    path_subject,
    scan_request,
    signatures_date,
    understand,
)
from clamsmtpd.values import Clean, Infected, Oversize, Unscanned, Verdict

FD = FILDES_SUBJECT
STREAM = STREAM_SUBJECT
PATH = "/var/spool/clamsmtpd.aB3x9Z"


def cuttings(reply: bytes) -> list[list[bytes]]:
    """Return the reply whole and octet by octet."""
    return [[reply], [reply[at : at + 1] for at in range(len(reply))]]


def read(subject: re.Pattern[bytes], pieces: list[bytes]) -> tuple[Verdict, bool]:
    """Feed what came on a connection for one scan; return the verdict, and whether clamd lacks the command."""
    replies = Replies(numbered=False)
    for piece in pieces:
        found = replies.feed(piece)
        if replies.fault:
            return Unscanned(replies.fault), False
        if found:
            ((number, reply),) = found
            assert number == 1
            return understand(reply, subject), is_unknown_command(reply)
    return Unscanned(replies.eof()), False


# ---- requests ------------------------------------------------------------------------------------


def test_requests_end_with_nul() -> None:
    assert FILDES == b"zFILDES\0" + b"\0", "one octet behind the command carries the descriptor"
    assert INSTREAM == b"zINSTREAM\0"
    assert scan_request("/tmp/a b") == b"zSCAN /tmp/a b\0"
    assert scan_request("/tmp/\udcff\u00e9") == b"zSCAN /tmp/\xff\xc3\xa9\0"


def test_chunks_carry_their_length_in_network_order() -> None:
    assert chunk_header(1) == b"\0\0\0\1"
    assert chunk_header(262144) == b"\0\4\0\0"
    assert chunk_header(0) == STREAM_END


# ---- clean ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "reply"),
    [
        (FD, b"fd[9]: OK\0"),
        (FD, b"fd[1024]: OK\0"),
        (STREAM, b"stream: OK\0"),
        (path_subject(PATH), PATH.encode() + b": OK\0"),
        (path_subject("/a", PATH), PATH.encode() + b": OK\0"),
        (path_subject("/a: b [1]"), b"/a: b [1]: OK\0"),
    ],
)
def test_clean(subject: re.Pattern[bytes], reply: bytes) -> None:
    for pieces in cuttings(reply):
        assert read(subject, pieces) == (Clean(), False)


@pytest.mark.parametrize(
    ("subject", "reply"),
    [
        (FD, b""),
        (FD, b"\0"),
        (FD, b"\n"),
        (FD, b"OK\0"),
        (FD, b": OK\0"),
        (FD, b"fd[9]: OK"),
        (FD, b"fd[9]: OK\n"),
        (FD, b"fd[9]: OK\r\0"),
        (FD, b"fd[9]: OK \0"),
        (FD, b" fd[9]: OK\0"),
        (FD, b"fd[9]:OK\0"),
        (FD, b"fd[9]: ok\0"),
        (FD, b"fd[9]: \0OK\0"),
        (FD, b"fd[9]:  OK\0"),
        (FD, b"fd[9]: NOT OK\0"),
        (FD, b"fd[9]: OK ERROR\0"),
        (FD, b"fd[]: OK\0"),
        (FD, b"fd[x]: OK\0"),
        (FD, b"fd[9\n]: OK\0"),
        (FD, b"stream: OK\0"),
        (FD, b"1: fd[9]: OK\0"),
        (STREAM, b"fd[9]: OK\0"),
        (STREAM, b"xstream: OK\0"),
        (STREAM, b"\xffstream: OK\0"),
        (path_subject(PATH), b"/var/spool/clamsmtpd-aB3x9Z: OK\0"),
        (path_subject(PATH), b"/other" + PATH.encode() + b": OK\0"),
        (path_subject(PATH), PATH.encode() + b".x: OK\0"),
        (path_subject("/a", PATH), b"/ab: OK\0"),
    ],
)
def test_nearly_clean_is_not_clean(subject: re.Pattern[bytes], reply: bytes) -> None:
    for pieces in cuttings(reply):
        verdict, unknown = read(subject, pieces)
        assert isinstance(verdict, Unscanned)
        assert not unknown


@pytest.mark.parametrize("rest", [b"\0", b"\n", b" ", b"x", b"fd[9]: OK\0", b"fd[9]: Evil FOUND\0"])
@pytest.mark.parametrize("reply", [b"fd[9]: OK\0", b"fd[9]: Evil FOUND\0"])
def test_nothing_may_stand_behind_the_reply(reply: bytes, rest: bytes) -> None:
    assert read(FD, [reply + rest]) == (Unscanned("octets behind its reply"), False)
    assert read(FD, [reply[:-1], reply[-1:] + rest]) == (Unscanned("octets behind its reply"), False)


def test_of_two_errors_the_first_is_the_reason() -> None:
    reply = b"PROTOCOL ERROR: ancillary data sent without FILDES. ERROR\0Error processing command. ERROR\0"
    for pieces in cuttings(reply):
        reason = 'it answered "PROTOCOL ERROR: ancillary data sent without FILDES. ERROR"'
        assert read(FD, pieces) == (Unscanned(reason), False)


# ---- infected ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (b"Eicar-Test-Signature.UNOFFICIAL", "Eicar-Test-Signature.UNOFFICIAL"),
        (b"Heuristics.Limits.Exceeded.MaxFileSize", "Heuristics.Limits.Exceeded.MaxFileSize"),
        (b"a", "a"),
        (b"OK", "OK"),
        (b"Evil FOUND", "Evil_FOUND"),
        (b"$(reboot); a\tb\x1b[0m\x7f", "$(reboot);_a_b_[0m_"),
        (b"W\xc3\xbcrm", "W__rm"),
        (b"n" * 256, "n" * 256),
    ],
)
def test_infected(found: bytes, name: str) -> None:
    for pieces in cuttings(b"stream: " + found + b" FOUND\0"):
        assert read(STREAM, pieces) == (Infected(name), False)


@pytest.mark.parametrize(
    "reply",
    [
        b"stream: (null) FOUND\0",
        b"stream: (null).UNOFFICIAL FOUND\0",
        b"stream:  FOUND\0",
        b"stream:   FOUND\0",
        b"stream: FOUND\0",
        b"stream: EvilFOUND\0",
        b"stream: Evil FOUND \0",
        b"stream: Evil found\0",
        b"stream: Evil FOUND\n",
        b"stream: Evil FOUND",
        b"stream: Evil\r FOUND\0",
        b"stream: Evil\n FOUND\0",
        b"Evil FOUND\0",
        b"fd[9]: Evil FOUND\0",
        b"stream: " + b"n" * 257 + b" FOUND\0",
    ],
)
def test_a_find_that_is_not_well_formed_is_no_verdict(reply: bytes) -> None:
    for pieces in cuttings(reply):
        verdict, _ = read(STREAM, pieces)
        assert isinstance(verdict, Unscanned)


# ---- no verdict ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "it closed the connection without a reply"),
        (b"\0", "an empty reply"),
        (b" \0", "an empty reply"),
        (b"\n", "an empty reply"),
        (b"stream: O", 'it closed the connection in the middle of its reply "stream: O"'),
        (b"Can't allocate memory ERROR\0", 'it answered "Can\'t allocate memory ERROR"'),
        (b"stream: Can't allocate memory ERROR\0", 'it answered "stream: Can\'t allocate memory ERROR"'),
        (
            b"COMMAND READ TIMED OUT\n",
            (
                'it answered "COMMAND READ TIMED OUT": '
                "CommandReadTimeout or ReadTimeout in clamd.conf is too short, or it has too much to do"
            ),
        ),
        (b"\x1b[2J\xff\t\r\0", 'it answered "?[2J?"'),
        (b"stream: " + b"n" * 1000 + b" ERROR\0", f'it answered "stream: {"n" * 192}"'),
    ],
)
def test_reasons_are_one_readable_line(reply: bytes, reason: str) -> None:
    for pieces in cuttings(reply):
        assert read(STREAM, pieces) == (Unscanned(reason), False)


def test_a_stream_that_is_too_long_is_told_apart_from_failures() -> None:
    reason = (
        'it answered "INSTREAM size limit exceeded. ERROR": the message is larger than StreamMaxLength in clamd.conf'
    )
    for pieces in cuttings(b"INSTREAM size limit exceeded. ERROR\0"):
        assert read(STREAM, pieces) == (Oversize(reason), False)


@pytest.mark.parametrize("greeting", [b"220 mail.example ESMTP\r\n", b"220-mail.example\r\n", b"554 no\r\n"])
def test_an_smtp_server_in_place_of_clamd_is_named(greeting: bytes) -> None:
    replies = Replies(numbered=True)
    assert replies.feed(greeting) == []
    assert replies.fault.endswith(": that is an SMTP server, not clamd")


@pytest.mark.parametrize("reply", [b"UNKNOWN COMMAND\0", b"FILDES support not compiled in. ERROR\0"])
def test_a_clamd_without_the_command_is_told_apart(reply: bytes) -> None:
    for pieces in cuttings(reply):
        verdict, unknown = read(FD, pieces)
        assert isinstance(verdict, Unscanned)
        assert unknown


@pytest.mark.parametrize("numbered", [True, False])
def test_a_reply_without_end_is_given_up(*, numbered: bool) -> None:
    replies = Replies(numbered=numbered)
    fed = 0
    while not replies.fault:
        assert fed <= 4096, "memory is bounded"
        assert replies.feed(b"x" * 64) == []
        fed += 64
    assert replies.fault == "a reply without end"


# ---- sessions ------------------------------------------------------------------------------------

SAID = b"2: fd[12]: OK\0" + b"1: fd[10]: Evil: a FOUND\0" + b"10: PONG\0"
HEARD = [(2, b"fd[12]: OK"), (1, b"fd[10]: Evil: a FOUND"), (10, b"PONG")]


def hear(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], Replies]:
    replies = Replies(numbered=True)
    return [found for piece in pieces for found in replies.feed(piece)], replies


def test_replies_have_numbers_and_come_in_any_order() -> None:
    for pieces in cuttings(SAID):
        heard, replies = hear(pieces)
        assert (heard, replies.fault) == (HEARD, "")
        assert replies.eof() == "it closed the connection without a reply"


@given(cuts=st.sets(st.integers(1, len(SAID) - 1)))
def test_replies_are_the_same_in_any_cutting(cuts: set[int]) -> None:
    edges = sorted({0, len(SAID), *cuts})
    heard, replies = hear([SAID[start:stop] for start, stop in itertools.pairwise(edges)])
    assert (heard, replies.fault) == (HEARD, "")


@pytest.mark.parametrize(
    "strange",
    [b"UNKNOWN COMMAND", b"fd[10]: OK", b": fd[10]: OK", b"-1: OK", b"1 : OK", b"1:OK", b"1" * 11 + b": OK", b""],
)
def test_a_reply_without_a_number_is_the_last_that_counts(strange: bytes) -> None:
    for pieces in cuttings(SAID + strange + b"\0" + SAID):
        replies = Replies(numbered=True)
        heard = []
        for piece in pieces:
            heard += replies.feed(piece)
            if replies.fault:
                break
        assert heard == HEARD
        assert replies.strange == strange
        assert replies.fault == (f'it answered "{strange.decode()}"' if strange else "an empty reply")


def test_errors_that_end_a_session_have_neither_number_nor_nul() -> None:
    for pieces in cuttings(SAID + b"COMMAND READ TIMED OUT\n"):
        heard, replies = hear(pieces)
        assert heard == HEARD
        assert replies.fault.startswith(
            'it answered "COMMAND READ TIMED OUT": CommandReadTimeout or ReadTimeout in clamd.conf'
        )


def test_a_session_that_ends_within_a_reply() -> None:
    heard, replies = hear([SAID + b"3: fd[1"])
    assert (heard, replies.fault) == (HEARD, "")
    assert replies.eof() == 'it closed the connection in the middle of its reply "3: fd[1"'


def test_what_a_session_does_not_know() -> None:
    assert is_unknown_command(b"Command invalid inside IDSESSION. ERROR")
    assert not is_unknown_command(b"fd[10]: OK")


# ---- whatever comes ------------------------------------------------------------------------------

REPLIES = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from([b"fd[9]", b"stream", b": ", b"OK", b"Evil", b" ", b"FOUND", b"ERROR", b"\0", b"\n", b"\r"]),
        max_size=8,
    ).map(b"".join),
)


@given(reply=REPLIES, cuts=st.lists(st.integers(0, 60)))
def test_no_cutting_and_no_garbage_makes_a_message_clean(reply: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(reply), *(cut for cut in cuts if cut < len(reply))})
    pieces = [reply[start:stop] for start, stop in itertools.pairwise(edges)]
    verdict, _ = read(FD, pieces)
    # Octets behind the reply are seen if they come with its end; if they come later, nobody waits for them.
    seen = b""
    for piece in pieces:
        seen += piece
        if b"\0" in seen or b"\n" in seen:
            break
    if isinstance(verdict, Clean):
        assert re.fullmatch(rb"fd\[[0-9]+\]: OK\0", seen)
    elif isinstance(verdict, Infected):
        assert re.fullmatch(rb"fd\[[0-9]+\]: [^\0\n\r]+ FOUND\0", seen)
        assert re.fullmatch(r"[!-~]{1,256}", verdict.name)
    else:
        assert re.fullmatch(r"[ -~]+", verdict.reason)


@given(
    reply=st.sampled_from([b"fd[12]: OK\0", b"fd[12]: Evil FOUND\0", b"UNKNOWN COMMAND\0", b"fd[12]: OK"]),
    cuts=st.sets(st.integers(1, 17)),
)
def test_any_cutting_gives_the_same_verdict(reply: bytes, cuts: set[int]) -> None:
    edges = sorted({0, len(reply), *(cut for cut in cuts if cut < len(reply))})
    pieces = [reply[start:stop] for start, stop in itertools.pairwise(edges)]
    assert read(FD, pieces) == read(FD, [reply])


@pytest.mark.parametrize(
    ("version", "date"),
    [
        ("ClamAV 1.4.3/27600/Fri Apr  4 08:36:16 2025", datetime(2025, 4, 4, 8, 36, 16)),  # noqa: DTZ001
        ("ClamAV 0.103.8/26900/Sun Dec 31 23:59:59 2023\n", datetime(2023, 12, 31, 23, 59, 59)),  # noqa: DTZ001
        ("ClamAV 1.4.3", None),
        ("", None),
        ("ClamAV 1.4.3/27600/Fri Foo  4 08:36:16 2025", None),
        ("ClamAV 1.4.3/27600/Fri Feb 30 08:36:16 2025", None),
        ("ClamAV 1.4.3/27600/Fri Apr  4 08:99:16 2025", None),
        ("ClamAV 1.4.3/27600/Fri Apr  4 ::::::: 2025", None),
        ("220 mail.example ESMTP", None),
    ],
)
def test_the_date_of_the_signatures(version: str, date: datetime | None) -> None:
    assert signatures_date(version) == date
