"""Dialogues of the relay, written down as they are spoken.

Each line of a transcript is an event or an effect; what an event causes stands behind it.

    >> text      the client sends a line         << text      we send the client a line
    <- text      the next hop sends a line       -> text      we send the next hop a line
    .. event     something else happens          ** effect    the relay asks for something else

Lines of events that follow each other without an effect between them are one segment. Texts are Latin-1 with
Python's backslash escapes; CRLF is added, except where the line ends with a backslash and c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from clamsmtpd.smtp.events import (
    BeginMessage,
    CloseClient,
    CloseServer,
    Discard,
    Effect,
    Identify,
    Inspect,
    Note,
    Reconnect,
    SecureClient,
    SecureServer,
    Store,
    ToClient,
    ToServer,
    Transmit,
)
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import Relay, Terms
from clamsmtpd.values import Bounce, Decision, Defer, Deliver, Drop, Ground

__all__ = ["DECISIONS", "GREETING", "MESSAGE", "Step", "parse", "play"]

#: How every dialogue begins.
GREETING = """
<- 220 hop.example ESMTP
<< 220 clamsmtpd.localdomain ESMTP
"""

#: How most go on: an envelope, and a message that waits for its verdict.
MESSAGE = (
    GREETING
    + r"""
>> MAIL FROM:<a@example.org>
-> MAIL FROM:<a@example.org>
<- 250 sender ok
<< 250 sender ok
>> RCPT TO:<b@example.org>
-> RCPT TO:<b@example.org>
<- 250 recipient ok
<< 250 recipient ok
>> DATA
** begin
<< 354 End data with <CR><LF>.<CR><LF>
>> Subject: hello
>>
>> text
>> .
** store Subject: hello\r\n\r\ntext\r\n
** inspect a@example.org b@example.org
"""
)

#: By the word that stands for them behind ``decide``.
DECISIONS: dict[str, Decision] = {
    "deliver": Deliver(b"X-Scanned: yes\r\n"),
    "deliver-on-top": Deliver(b"Received: here\r\n", on_top=True),
    "deliver-plain": Deliver(),
    "drop": Drop(),
    "deliver-renamed": Deliver(b"X-Scanned: yes\r\n", insertions=((0, b"X-Old-"), (8, b"X-Old-"))),
    "deliver-on-top-renamed": Deliver(b"Received: here\r\n", on_top=True, insertions=((0, b"X-Old-"),)),
    "deliver-plain-renamed": Deliver(insertions=((0, b"X-Old-"), (8, b"X-Old-"))),
    "bounce": Bounce(),
    "bounce-oversize": Bounce(Ground.OVERSIZE),
    "bounce-forgery": Bounce(Ground.FORGERY),
    "defer": Defer(),
    "defer-oversize": Defer(Ground.OVERSIZE),
}


@dataclass
class Step:
    """One event, and the effects that it must have."""

    kind: str
    data: bytes = b""
    effects: list[str] = field(default_factory=list)


def parse(transcript: str) -> list[Step]:
    """Read a transcript."""
    steps: list[Step] = []
    for raw in transcript.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        kind, text = line[:2], line[3:]
        if kind in (">>", "<-"):
            data = _octets(text)
            if steps and steps[-1].kind == kind and not steps[-1].effects:
                steps[-1].data += data
            else:
                steps.append(Step(kind, data))
        elif kind == "..":
            steps.append(Step(text))
        else:
            steps[-1].effects.append(line)
    return steps


def _octets(text: str) -> bytes:
    cut = text.endswith("\\c")
    plain = text.removesuffix("\\c").encode("latin-1").decode("unicode_escape").encode("latin-1")
    return plain if cut else plain + b"\r\n"


def _show(effects: Iterable[Effect]) -> list[str]:
    """Write effects down as a transcript does; what can come in pieces is put together first."""
    merged: list[Effect] = []
    for effect in effects:
        last = merged[-1] if merged else None
        if isinstance(effect, Store) and isinstance(last, Store):
            merged[-1] = Store(last.text + effect.text)
        elif isinstance(effect, ToClient) and isinstance(last, ToClient):
            merged[-1] = ToClient(last.data + effect.data)
        elif isinstance(effect, ToServer) and isinstance(last, ToServer):
            merged[-1] = ToServer(last.data + effect.data)
        else:
            merged.append(effect)
    lines: list[str] = []
    for effect in merged:
        match effect:
            case ToClient(data):
                lines += [f"<< {_text(part)}" for part in data.removesuffix(b"\r\n").split(b"\r\n")]
            case ToServer(data):
                lines += [f"-> {_text(part)}" for part in data.removesuffix(b"\r\n").split(b"\r\n")]
            case BeginMessage():
                lines.append("** begin")
            case Store(text):
                lines.append(f"** store {_text(text)}")
            case Discard():
                lines.append("** discard")
            case Inspect(envelope, stuffed, _):
                names = [_text(envelope.sender) or "<>", *map(_text, envelope.recipients)]
                names += [f"remote={_text(envelope.remote)}"] if envelope.remote else []
                names += [f"helo={_text(envelope.remote_helo)}"] if envelope.remote_helo else []
                lines.append(" ".join(["** inspect", *names, *(["stuffed"] if stuffed else [])]))
            case Transmit(insertions, before, after):
                lines += [f"-> {_text(part)}" for part in before.split(b"\r\n")[:-1]]
                shown = " ".join(f"{offset} {_text(added)}".rstrip() for offset, added in insertions)
                lines.append(f"** transmit {shown}")
                assert after == (b"" if before else b".\r\n")
            case SecureClient():
                lines.append("** secure client")
            case SecureServer():
                lines.append("** secure server")
            case Reconnect():
                lines.append("** reconnect")
            case Identify(identity):
                known = [f"{name}={getattr(identity, name)}" for name in ("address", "port", "name", "helo", "login")]
                lines.append("** identify " + " ".join(item for item in known if not item.endswith("=None")))
            case CloseServer(abort):
                lines.append("** abort server" if abort else "** close server")
            case CloseClient():
                lines.append("** close client")
            case Note():
                lines.append(f"** note {effect.text}")
    return lines


def _text(data: bytes) -> str:
    return data.decode("latin-1").encode("unicode_escape").decode("ascii")


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _events(relay: Relay, step: Step, size: int) -> Iterable[Callable[[], list[Effect]]]:
    if step.kind == ">>":
        return [partial(relay.client_data, piece) for piece in _cut(step.data, size)]
    if step.kind == "<-":
        return [partial(relay.server_data, piece) for piece in _cut(step.data, size)]
    name, *words = step.kind.split()
    if name == "decide":
        return [lambda: relay.decide(DECISIONS[words[0]])]
    if name == "server-lost":
        return [lambda: relay.server_lost(" ".join(words))]
    if name == "server-insecure":
        return [lambda: relay.server_insecure(" ".join(words))]
    return [getattr(relay, name.replace("-", "_"))]


def play(transcript: str, terms: Terms | None = None, identity: Identity | None = None) -> Relay:
    """Act a dialogue out, in whole segments and octet by octet, and hold it against the transcript.

    Returns the relay of the last performance.
    """
    relay = Relay()
    for size in (1 << 20, 1, 7):
        relay = Relay(terms, identity)
        for number, step in enumerate(parse(transcript)):
            effects = [effect for event in _events(relay, step, size) for effect in event()]
            said = f"step {number} in pieces of {size}: {step.kind} {step.data!r}"
            assert _show(effects) == step.effects, said
    return relay
