"""The targets of fuzzing: their corpora, in the whole suite's time and without Atheris; and each can find something."""

from __future__ import annotations

import importlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clamsmtpd.config import ConfigError
from clamsmtpd.proxyprotocol import Proxied, ProxyError, ProxyHeader
from clamsmtpd.smtp import identity, relay, syntax
from clamsmtpd.smtp.body import EndOfData
from clamsmtpd.values import Clean, Drop
from fuzz import targets

ROOT = Path(__file__).parents[2]
INPUTS = [(name, path) for name in targets.NAMES for path in targets.find(name).inputs()]


@pytest.mark.parametrize(("name", "path"), INPUTS, ids=[f"{name}-{path.name}" for name, path in INPUTS])
def test_an_input_of_the_corpus_or_an_old_finding_shows_nothing_wrong(name: str, path: Path) -> None:
    targets.find(name).one_input(path.read_bytes())


@pytest.mark.parametrize("name", targets.NAMES)
def test_there_is_a_corpus_to_start_from(name: str) -> None:
    assert len([path for of, path in INPUTS if of == name]) >= 4


@pytest.mark.parametrize("name", targets.NAMES)
def test_whatever_the_octets_are_a_target_takes_them(name: str) -> None:
    target = targets.find(name)
    chance = random.Random(name)
    for _ in range(60):
        target.one_input(chance.randbytes(chance.randrange(80)))
        words = chance.choices(target.words, k=chance.randrange(6))
        target.one_input(chance.randbytes(5) + b"".join(words))


# ---- what a target must see ------------------------------------------------------------------------


def swap(place: str, broken: object) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what puts something broken in the place of what it stands for."""

    def put(patch: pytest.MonkeyPatch) -> None:
        name, _, attribute = place.rpartition(".")
        try:
            holder: object = importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, owner = name.rpartition(".")
            holder = getattr(importlib.import_module(module), owner)
        patch.setattr(holder, attribute, broken)

    return put


def ends_at_a_bare_line_feed(self: EndOfData, data: bytes) -> tuple[bytes, bytes | None]:
    text, end, rest = data.partition(b"\n.\n")
    return (text, rest) if end else (data, None)


def accepts_at_once(self: relay.Relay, reply: syntax.Reply, argument: bytes = b"") -> None:
    self._answer(b"250 ok\r\n")
    self._close()


def forgets_the_decision(self: relay.Relay) -> None:
    self._ask(b"DATA\r\n", self._on_data)


def reads_ok_anywhere(reply: bytes, subject: object) -> object:
    return Clean() if b"OK" in reply else Drop()


def answers_twice(self: relay.Relay, reply: syntax.Reply, argument: bytes) -> None:
    self._say(reply.encode())
    self._pass_on(reply)


def drops_an_octet(self: EndOfData, data: bytes) -> tuple[bytes, bytes | None]:
    text, rest = FEED(self, data)
    return text[1:], rest


def believes_all(self: identity.Identity, argument: bytes) -> identity.Identity:
    return replace(self, helo=argument, learnt=True)


def reads_a_header_in_one_piece(self: ProxyHeader, data: bytes) -> tuple[Proxied, bytes] | None:
    header = ProxyHeader()
    if b"\r\n" not in data:
        raise ProxyError("it is cut")
    return PROXY_FEED(header, data)


def fails_in_two_lines(path: str) -> None:
    raise ConfigError(f"{path}: no\nreally not")


FEED = EndOfData.feed
PROXY_FEED = ProxyHeader.feed

BROKEN: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "an end at a bare LF": ("body", swap("clamsmtpd.smtp.body.EndOfData.feed", ends_at_a_bare_line_feed)),
    "a header section without end": ("body", swap("clamsmtpd.smtp.body.HeaderSection.feed", lambda self, text: None)),
    "dots that stay": ("body", swap("clamsmtpd.smtp.body.Unstuffing.feed", lambda self, data: data)),
    "a text that lacks an octet": ("relay", swap("clamsmtpd.smtp.body.EndOfData.feed", drops_an_octet)),
    "a 250 before its time": ("relay", swap("clamsmtpd.smtp.relay.Relay._on_data", accepts_at_once)),
    "DATA without a verdict": ("relay", swap("clamsmtpd.smtp.relay.Relay._carry_out", forgets_the_decision)),
    "two replies to a command": ("relay", swap("clamsmtpd.smtp.relay.Relay._on_rset", answers_twice)),
    "no reply to a command": ("relay", swap("clamsmtpd.smtp.relay.Relay._pass_on", lambda *_: None)),
    "a reply in place of another": ("relay", swap("clamsmtpd.smtp.relay.Relay._has_work", lambda self: False)),
    "chunks that keep their dots": ("chunks", swap("clamsmtpd.smtp.body.Stuffing.feed", lambda self, text: text)),
    "chunks without an end": ("chunks", swap("clamsmtpd.smtp.message.Message.finish_chunks", lambda self: b"")),
    "lines with NUL": (
        "commands",
        swap("clamsmtpd.smtp.syntax.CommandLines._verdict", staticmethod(lambda line, limit: None)),
    ),
    "replies that are too long": ("replies", swap("clamsmtpd.smtp.syntax.REPLY_MAX", 8)),
    "keywords of any kind": ("replies", swap("clamsmtpd.smtp.capabilities.PASSED", {b"BURL": "why not"})),
    "an OK anywhere": ("verdicts", swap("fuzz.targets.verdicts.understand", reads_ok_anywhere)),
    "two lines of error": ("settings", swap("fuzz.targets.settings.load", fails_in_two_lines)),
    "an identity unseen": ("attributes", swap("clamsmtpd.smtp.identity.Identity.taking", believes_all)),
    "values that are not told": ("attributes", swap("clamsmtpd.smtp.identity._encode", lambda value: b"[UNAVAILABLE]")),
    "a header in one piece": ("proxy", swap("clamsmtpd.proxyprotocol.ProxyHeader.feed", reads_a_header_in_one_piece)),
    "parts that lack an octet": ("parts", swap("clamsmtpd.parts._TAILS", ())),
    "names with a path": ("parts", swap("clamsmtpd.parts.clean_name", str)),
    "any template": ("template", swap("fuzz.targets.template.check_header", lambda text: text)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_its_corpus_shows_a_target_what_is_broken(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, put = BROKEN[what]
    target = targets.find(name)
    put(monkeypatch)
    assert any(fails(target, data) for data in inputs(target)), f"{name} does not see {what}"


def inputs(target: targets.Target) -> Iterator[bytes]:
    for path in target.inputs():
        yield path.read_bytes()
    yield from (b"\0\0\0\0" + word for word in target.words)


def fails(target: targets.Target, data: bytes) -> bool:
    # Any other exception would be a finding too, but here it is a fault of the stand-in.
    try:
        target.one_input(data)
    except AssertionError:
        return True
    return False


def test_every_target_is_shown_something_broken() -> None:
    assert {name for name, _ in BROKEN.values()} == set(targets.NAMES)


# ---- the driver ------------------------------------------------------------------------------------


def drive(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the driver with ``folder`` first on the path of its modules."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "fuzz", "--artefacts", str(folder / "found"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_run_without_a_finding_says_so_and_leaves_the_tree_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    before = targets.find("template").inputs()
    done = drive(tmp_path, "--runs", "3000", "template")
    assert done.returncode == 0
    assert re.fullmatch(
        r"template +30\d\d executions .* no finding\nfuzz: 1 targets, 30\d\d executions, no findings\n", done.stdout
    )
    assert targets.find("template").inputs() == before


def test_a_finding_is_kept_and_told_how_to_see_again(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    broken = "from clamsmtpd import templates\n\ntemplates.check_header = lambda text: text\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    done = drive(tmp_path, "--runs", "100000", "template")
    assert done.returncode == 1
    assert done.stdout.endswith(" executions, 1 finding\n")
    (again,) = re.findall(r"^again: .* -m fuzz.engine template (.*)$", done.stdout, re.MULTILINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fuzz.targets.template.check_header", lambda text: text)
        assert fails(targets.find("template"), Path(again).read_bytes())


def test_a_target_that_is_none_is_refused(tmp_path: Path) -> None:
    done = drive(tmp_path, "mailbox")
    assert done.returncode == 2
    assert "no target: mailbox; there are attributes, " in done.stderr
