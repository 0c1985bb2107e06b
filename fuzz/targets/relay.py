"""The relay: anything happens in any order, and what must hold at every moment holds.

The first two octets are the terms of the dialogue and a size of pieces. Each record behind them, up to an octet FE, is
one event: its kind (see ``_KINDS``), then what comes with it. A record of no known kind is what a client sends.
The world is :class:`tests.support.watcher.Watcher`. Everything happens twice, in whole segments and in pieces, which
must make no difference.
"""

from __future__ import annotations

from collections.abc import Iterator

from clamsmtpd.smtp import replies
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import Terms
from clamsmtpd.values import Bounce, Defer, Deliver, Drop, OutTls
from fuzz.octets import split_off
from tests.support.watcher import Watcher

__all__ = ["DECISIONS", "SEPARATOR", "WORDS", "header", "one_input", "record"]

SEPARATOR = b"\xfe"

DECISIONS = (
    Deliver(b"X-Scanned: yes\r\n"),
    Drop(),
    Bounce(),
    Defer(),
    Deliver(),
    Deliver(b"Received: here\r\n", on_top=True, insertions=((0, b"X-"),)),
)

_KINDS = {
    b">": "client_data",
    b"<": "server_data",
    b"d": "decide",
    b"t": "transmitted",
    b"k": "keep_alive",
    b"g": "drain",
    b"o": "timed_out",
    b"!": "storage_failed",
    b"e": "client_eof",
    b"l": "client_lost",
    b"s": "client_secured",
    b"S": "server_secured",
    b"i": "server_insecure",
    b"L": "server_lost",
    b"f": "full",
    b"F": "empty",
    b"r": "refuse",
    # Not of the relay: the next hop answers all that it was asked, and the octets of the last event come again.
    b"a": "answer",
    b"*": "again",
}

_OUT_TLS = (OutTls.OFF, OutTls.MAY, OutTls.ENCRYPT, OutTls.OFF)
_SIZES = (1, 2, 3, 5, 7, 16, 64, 1000)

#: Octets that one side may send in one input; more costs much and shows nothing.
_OCTETS_MAX = 80_000
#: With so many, no backpressure comes about, which depends on how octets are cut.
_OCTETS_COMPARED = 20_000
_EVENTS_MAX = 100
_ANSWERS_MAX = 120

_EHLO = (
    b"250-hop\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-STARTTLS\r\n250-XFORWARD NAME ADDR HELO\r\n"
    b"250-XCLIENT NAME ADDR\r\n250 SIZE 4000\r\n"
)
_GOOD = {b"GREETING": b"220 hop\r\n", b"EHLO": _EHLO, b"LHLO": _EHLO, b"DATA": b"354 go\r\n", b"QUIT": b"221 bye\r\n"}
_OK = b"250 ok\r\n"
_ODD = (
    b"450 no\r\n",
    b"503 no\r\n",
    b"421 away\r\n",
    b"334 more\r\n",
    b"235 in\r\n",
    b"250-a\r\n250 b\r\n",
    b"what\r\n",
)

WORDS = (
    SEPARATOR,
    *(SEPARATOR + kind for kind in _KINDS),
    *(
        SEPARATOR + b">" + verb
        for verb in (b"EHLO x\r\n", b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n", b"DATA\r\n", b"RSET\r\n")
    ),
    *(SEPARATOR + b"<" + reply for reply in (b"220 go\r\n", _OK, b"354 go\r\n", b"550 no\r\n", b"421 away\r\n")),
    *(b"LHLO x\r\n", b"HELO x\r\n", b"QUIT\r\n", b"NOOP\r\n", b"AUTH PLAIN\r\n", b"STARTTLS\r\n", b"HELP\r\n"),
    *(b"XCLIENT ADDR=192.0.2.1\r\n", b"XFORWARD ADDR=192.0.2.2\r\n", b"PROXY TCP4 "),
    *(b"BDAT 3\r\nabc", b"BDAT 0 LAST\r\n", b"BDAT 5 LAST\r\nabc\r\n", b" BODY=BINARYMIME"),
    *(b"\r\n.\r\n", b".\r\n", b"\n.\n", b"\r\n..", b"X: y\r\n", b"\0", b"250-CHUNKING\r\n", b"250 SIZE 9\r\n"),
)


def header(terms: Terms, size: int = 0) -> bytes:
    """Write the octets that an input begins with."""
    bits = (terms.lmtp_client, terms.lmtp_server, terms.announce, terms.trusted, terms.starttls)
    out_tls = OutTls.ENCRYPT if terms.out_tls is OutTls.VERIFY else terms.out_tls
    first = sum(bit << number for number, bit in enumerate(bits)) | _OUT_TLS.index(out_tls) << 5
    return bytes((first, size))


def record(kind: str, argument: bytes = b"") -> bytes:
    """Write an event."""
    (letter,) = (letter for letter, name in _KINDS.items() if name == kind)
    return letter + argument.replace(SEPARATOR, b"") + SEPARATOR


def one_input(data: bytes) -> None:
    """Let happen what the input says."""
    (first, second), rest = split_off(data, 2)
    terms = Terms(
        lmtp_client=bool(first & 1),
        lmtp_server=bool(first & 2),
        announce=bool(first & 4),
        trusted=bool(first & 8),
        starttls=bool(first & 16),
        out_tls=_OUT_TLS[first >> 5 & 3],
    )
    events = list(_events(rest))
    whole = _play(terms, events, 1 << 20, shortcuts=True)
    octets = sum(len(argument) for _, argument in events)
    if octets > _OCTETS_COMPARED or whole.cut_matters:
        return
    size = _SIZES[second % len(_SIZES)]
    cut = _play(terms, events, size if octets < 1000 else max(size, 100), shortcuts=False)
    assert cut.said == whole.said
    assert cut.asked == whole.asked
    assert cut.transmitted == whole.transmitted


def _events(octets: bytes) -> Iterator[tuple[str, bytes]]:
    last = b""
    room = _OCTETS_MAX
    for text in octets.split(SEPARATOR)[:_EVENTS_MAX]:
        kind = _KINDS.get(text[:1])
        name, argument = (kind, text[1:]) if kind is not None else ("client_data", text)
        if name == "again":
            name, argument = "client_data", last * (argument[0] if argument else 2)
        elif name == "client_data":
            last = argument
        room -= len(argument)
        if room < 0:
            return
        yield name, argument


def _play(terms: Terms, events: list[tuple[str, bytes]], pieces: int, *, shortcuts: bool) -> Watcher:
    identity = Identity(address="192.0.2.1", learnt=terms.trusted)
    watcher = Watcher(terms, identity, pieces=pieces, shortcuts=shortcuts)
    for name, argument in events:
        match name:
            case "client_data" | "server_data":
                watcher.happen(name, argument)
            case "decide":
                watcher.happen(name, DECISIONS[(argument[0] if argument else 0) % len(DECISIONS)])
            case "answer":
                _answer(watcher, argument)
            case "server_lost" | "server_insecure":
                watcher.happen(name, "why")
            case "refuse":
                watcher.happen(name, replies.LOOP)
            case _:
                watcher.happen(name)
    watcher.end()
    return watcher


def _answer(watcher: Watcher, codes: bytes) -> None:
    """Answer all that the next hop was asked: well, but for what ``codes`` say of the first answers."""
    for number in range(_ANSWERS_MAX):
        if not watcher.server.asked or watcher.server_closed or watcher.securing_server:
            return
        if watcher.server.asked[0] == b"TEXT":
            watcher.happen("transmitted")
        reply = _GOOD.get(watcher.server.asked[0], _OK)
        code = codes[number : number + 1]
        odd = code[0] - ord("A") if code else -1
        watcher.happen("server_data", _ODD[odd] if 0 <= odd < len(_ODD) else reply)
