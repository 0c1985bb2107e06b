"""``python -m fuzz.seeds [FOLDER]``: makes the corpora anew, of which fuzzing starts.

They are made of the dialogues and tables that the tests know, of what is written down here, of what the corpora hold
already, and of what is in FOLDER/TARGET. What is written down stays; of the dialogues, those that together do all that
any of them does; of the others, what reaches code that nothing else does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from unittest import mock

import pytest

from clamsmtpd.config import SETTINGS
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import Relay, Terms
from fuzz import targets
from fuzz.targets import relay
from tests.support import transcript

_ROOT = Path(__file__).parent.parent

#: How the network cuts: as :func:`fuzz.octets.cuttings` reads it.
_SIZES = b"\x03\x01\x07\x02"

_BODIES = (
    b".\r\n",
    b"A: b\r\n c\r\nC: d\r\n\r\ntext\r\n..\r\n.x\r\n.\r\nQUIT\r\n",
    b"a\n.\r\nb\r\n.\r\n",
    b"a\r\n\0.\0\r\nb\r.\rc\r\n.\r\n",
    b"From a@b Mon\nA: b\n\ntext\r\n.\r\n.\r\n",
    b" blank first\r\nA: b\r\n.\r\n",
    b"A" * 998 + b" : b\r\n" + b"B" * 999 + b": c\r\n.\r\n",
    b"A" + b" " * 1500 + b": b\r\n.\r\n",
)
_COMMANDS = (
    b'MAIL FROM:<a@b> BODY=BINARYMIME\r\nRCPT \t TO:<@r,@s:"c>"@d>\r\nDATA\r\n',
    b"BDAT 3 LAST\r\nBDAT 0012\t\tlast\r\nBDAT x\r\n",
    b"A\nB\r\nDA\0\r\nTA\r\r\n" + b"x" * 70 + b"\r\nNOOP\r\n\r",
)
_REPLIES = (
    b"220 hop\r\n250-x\r\n250-SIZE 1000\r\n250-AUTH=PLAIN\r\n250-BURL\r\n250-CHUNKING\r\n250 BINARYMIME\r\n",
    b"250-a\r\n251 b\r\n",
    b"250\r\n354 go\n421 \r\n550-\r\n550 x\r\n",
    b"250 a\0b\r\n",
    b"what\r\n",
)
_VERDICTS = (
    b"stream: OK\0",
    b"fd[10]: Eicar-Test\xe4 FOUND\0",
    b"1: stream: OK\022: fd[7]: (null) FOUND\0",
    b"/tmp/clamsmtpd.a(b: OK\0more",
    b"COMMAND READ TIMED OUT\n",
    b"INSTREAM size limit exceeded. ERROR\0",
    b"stream: OK",
)
_SETTINGS = (
    b"OutAddress: lmtp:[::1]:24\nListen: /x owner=a:b mode=0660\nTrustedClients: /x, 192.0.2.0/24 [2001:db8::]/32\n",
    b"TransparentProxy: yes\nScanHeader: X: %i %l %d %%\\r\\n\\tx\nBounce: on\n# comment\nClamAddress: 3310\nUser: a\n",
    b"OutAddress: 25\nOutAdress: 26\n",
    b"no colon\n",
    b"OutAddress: host\nOutTLS: verify\nProxyProtocol: on\nTrustedClients: ::ffff:192.0.2.0/120\nWorkers: 3\n",
    *(f"OutAddress: 25\n{setting.name}: {setting.default or 'x'}\n".encode() for setting in SETTINGS),
)
_ATTRIBUTES = (
    b"ADDR=192.0.2.1 NAME=x.example PORT=25 PROTO=ESMTP HELO=a+2Bb LOGIN=joe+40x DESTADDR=IPV6:2001:db8::1 DESTPORT=0",
    b"addr=IPv6:::ffff:192.0.2.1 name=[UNAVAILABLE] helo=[tempunavail] proto=",
    b"NAME=" + b"+C3+A4" * 100,
    b"HELO=a+0Ab",
    b"PORT=65536",
)
_TEMPLATES = (
    b"X-Virus-Scanned: ClamAV using ClamSMTP",
    b"Received: from %i\\r\\n\\tby %l; %d (100%%)",
    b"X: a\\nY: b\\n c\\\\ %q",
)
_PROXY_2 = b"\r\n\r\n\0\r\nQUIT\n"
_PROXIES = (
    b"PROXY TCP4 192.0.2.1 192.0.2.25 4711 25\r\nEHLO x\r\n",
    b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 0 65535\r\n",
    b"PROXY UNKNOWN whatever\r\n",
    _PROXY_2 + b"\x21\x11\0\x14\xc0\0\2\1\xc0\0\2\x19\x12\x67\0\x19" + b"\x01\0\x02h2\x04\0\0" + b"EHLO x\r\n",
    _PROXY_2 + b"\x21\x21\0\x24" + bytes(10) + b"\xff\xff\xc0\0\2\1" + bytes(15) + b"\1\x12\x67\0\x19",
    _PROXY_2 + b"\x21\x31\0\xd8" + b"/" * 216,
    _PROXY_2 + b"\x20\0\0\x03abc",
    # Section 2.2.3: the checksum of CRC-32C.
    _PROXY_2 + b"\x21\x11\0\x13\xc0\0\2\1\xc0\0\2\x19\x12\x67\0\x19\x03\0\x04\x4f\x9c\x5c\xd6",
)
_MIME = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
_MESSAGES = (
    _MIME + b"\r\ntext\r\n--b\r\nContent-Type: a/b; name=c\r\n\r\n--bb\r\n--b--\r\nepilogue",
    _MIME + b"Content-Type: message/rfc822\r\n\r\n" + _MIME.replace(b"=b", b"=c").replace(b"--b", b"--c") + b"\r\nx",
    b"Content-Transfer-Encoding: base64\r\nContent-Type: x/y; name*0*=u''%41;\r\n name*1=/b\r\n\r\nQUI=",
    b'Content-Transfer-Encoding: quoted-printable\r\nContent-Type: a/b; name="=?utf-8?b?QQ==?="\r\n\r\na=3D=\r\n',
    b"From x\nA: b\nno field\n",
    _MIME.replace(b"mixed", b"digest") + b"--b\r\n\r\nContent-Type: x\r\n\r\n\r\n--b \r\n",
)
_CHUNKS = (
    b"\0\5\3\7\2t\xfeBA: b\r\n\r\n.x\xfeL\r\n.y\xfex\xfetz\xfeDvirus\xfeq",
    b"\1\5\3\7\2t\xfeBA: b\r\n\r\n.x\xfeL\r\n.\r\ny\xfem\xfer\xfes\xfeLbroken\xfee\xfeB",
    b"\0\5\3\7\2m\xfeBabc\xfer\xfeLabc\xfen\xfeD a\n.\nb\xfep\xfe?",
)

_START = b"\0\0a\xfe>EHLO x\r\n\xfea\xfe"
_ENVELOPE = b">MAIL FROM:<a>\r\nRCPT TO:<b>\r\n\xfea\xfe"
_RELAYS = (
    # A client that does not read; refusals that must wait; a message above SIZE; replies that are none; two messages;
    # no pipelining; AUTH.
    _START + b"f\xfe>MAIL FROM:<a>\r\nRCPT TO:<b>\r\n\xfea\xfeF\xfea",
    _START + b">MAIL FROM:<a>\r\nDATA x\r\n\xfea",
    _START
    + _ENVELOPE
    + b">DATA\r\n\xfe>A: 34567890123456789012345678901234567890\r\n\xfe*\xff\xfe>.\r\n\xfed\xfea\xfea",
    _START + _ENVELOPE + b">DATA\r\nx\r\n.\r\n\xfed\xfea\xfet\xfe<334 x\r\n",
    _START + (_ENVELOPE + b">DATA\r\nx\r\n.\r\n\xfed\1\xfea\xfe") * 2 + b">QUIT\r\n\xfea",
    _START
    + _ENVELOPE
    + b">BDAT 1\r\nxBDAT 2 LAST\r\n\r\n\xfed\2\xfea\xfe"
    + _ENVELOPE
    + b">BDAT 1 LAST\r\nx\xfed\0\xfea\xfea",
    b"\0\0a\xfe>HELO x\r\n\xfea\xfe>MAIL FROM:<a>\r\nMAIL FROM:<b> BODY=BINARYMIME\r\nRCPT TO:<c>\r\n\xfea",
    b"\0\0a\xfe>EHLO x\r\n\xfe<250-x\r\n250 PIPELINING\r\n\xfe>MAIL FROM:<a>\r\nMAIL FROM:<b> BODY=BINARYMIME\r\n\xfea",
    _START + b">AUTH LOGIN\r\n\xfe<334 x\r\n\xfe>NOOP\r\n\xfe<334 y\r\n\xfe>DATA\r\n\xfe<235 in\r\n\xfe>NOOP\r\n\xfea",
)


def main(folder: str = "") -> None:
    """Make all corpora."""
    made = dict(_made())
    for name in targets.NAMES:
        target = targets.find(name)
        with tempfile.TemporaryDirectory(prefix="clamsmtpd-fuzz-") as scratch:
            pool = Path(scratch, "pool")
            pool.mkdir()
            _write(pool, _dialogues() if name == "relay" else ())
            merged = Path(scratch, "merged")
            merged.mkdir()
            # What is written down here stays, whatever it reaches.
            _write(merged, made[name])
            _merge(name, merged, pool, "-set_cover_merge=1")
            for source in (target.corpus, *([Path(folder, name)] if folder else [])):
                if source.is_dir():
                    _merge(name, merged, source, "-merge=1", "-use_counters=0")
            shutil.rmtree(target.corpus, ignore_errors=True)
            target.corpus.mkdir(parents=True)
            _write(target.corpus, (path.read_bytes() for path in merged.iterdir()))
        files = list(target.corpus.iterdir())
        print(f"{name}: {len(files)} files, {sum(path.stat().st_size for path in files)} octets")


def _merge(name: str, into: Path, source: Path, *options: str) -> None:
    command = [sys.executable, "-m", "fuzz.engine", name, *options, f"-artifact_prefix={into.parent}/"]
    subprocess.run([*command, str(into), str(source)], cwd=_ROOT, stderr=subprocess.DEVNULL, check=True)


def _write(folder: Path, inputs: Iterable[bytes]) -> None:
    for data in inputs:
        (folder / sha256(data).hexdigest()[:16]).write_bytes(data)


def _made() -> Iterator[tuple[str, list[bytes]]]:
    yield "relay", list(_RELAYS)
    yield "chunks", list(_CHUNKS)
    yield "attributes", list(_ATTRIBUTES)
    yield "settings", list(_SETTINGS)
    yield "template", list(_TEMPLATES)
    for name, inputs in (
        ("body", _BODIES),
        ("commands", _COMMANDS),
        ("replies", _REPLIES),
        ("verdicts", _VERDICTS),
        ("parts", _MESSAGES),
        ("proxy", _PROXIES),
    ):
        yield name, [_SIZES + data for data in inputs]


def _dialogues() -> Iterator[bytes]:
    """Have the tests of the relay act their transcripts out, and return them as inputs."""
    seen: list[bytes] = []
    play = transcript.play

    def record(transcript: str, terms: Terms | None = None, identity: Identity | None = None) -> Relay:
        seen.append(_input(transcript, terms or Terms()))
        return play(transcript, terms, identity)

    tests = sorted(str(path) for path in (_ROOT / "tests" / "unit" / "smtp").glob("test_relay*.py"))
    with mock.patch.object(transcript, "play", record):
        pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
    yield from seen


def _input(text: str, terms: Terms) -> bytes:
    found = relay.header(terms, len(text) % 8)
    for step in transcript.parse(text):
        name, *words = step.kind.split()
        match name:
            case ">>":
                found += relay.record("client_data", step.data)
            case "<-":
                found += relay.record("server_data", step.data)
            case "decide":
                found += relay.record("decide", bytes((relay.DECISIONS.index(transcript.DECISIONS[words[0]]),)))
            case _:
                found += relay.record(name.replace("-", "_"))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
