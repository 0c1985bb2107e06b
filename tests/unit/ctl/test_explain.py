"""The story of one message, from its account."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.account import Account, Tag
from clamsmtpd.clamd.course import Course
from clamsmtpd.ctl.explain import in_log, timeline
from clamsmtpd.ctl.main import cli
from clamsmtpd.values import Bounce, Clean, Defer, Deliver, Envelope, Infected, Unscanned

# In its package, the command has the name of its module.
explain = importlib.import_module("clamsmtpd.ctl.explain")


def account(**changes: Any) -> dict[str, Any]:
    given_ = Account(
        Tag("100ABC", "100ABC-2"),
        "192.0.2.1",
        "192.0.2.9",
        since=1_800_000_000.0,
        began=1.0,
        whole=2.0,
        judged=2.5,
        sent=2.5,
        size=1234,
        envelope=Envelope(b"a@example.org", (b"b@example.org",)),
        course=Course("/clamd", 2.25, 1),
        verdict=Clean(),
        decision=Deliver(),
    )
    for name, value in changes.items():
        setattr(given_, name, value)
    given_.end(3.0, changes.pop("said", b"250 2.0.0 Ok: queued as 4X\r\n"), taken=changes.pop("taken", 1))
    return given_.as_dict()


def test_a_clean_message() -> None:
    lines = timeline(account())
    assert lines[0].startswith("message 100ABC-2, 2027-01-15 ")
    assert lines[1:] == [
        "  from a@example.org to b@example.org, through 192.0.2.1",
        "      1.000 s  received whole: 1234 octets in 1.00 s",
        "      1.250 s  waited 250 ms for a scanner",
        "      1.500 s  verdict: clean, by clamd at /clamd in 250 ms",
        "      1.500 s  decided: deliver",
        "      2.000 s  next hop 192.0.2.9 answered after 500 ms",
        "      2.000 s  the client was told: 250 2.0.0 Ok: queued as 4X (the next hop took it)",
    ]


def told(**changes: Any) -> str:
    given_ = Account(Tag("1", "1-1"), began=1.0)
    reply, taken = changes.pop("reply", b""), changes.pop("taken", None)
    for name, value in changes.items():
        setattr(given_, name, value)
    given_.end(9.0, reply, taken=taken)
    return "\n".join(timeline(given_.as_dict()))


def test_a_virus() -> None:
    text = told(
        whole=2.0,
        judged=3.0,
        course=Course("/clamd", 2.0, 2),
        verdict=Infected("Eicar"),
        decision=Bounce(),
        kept="/spool/virus.AbCdEf",
        reply=b"550 5.7.1 Virus\r\n",
    )
    assert "verdict: infected, Eicar, by clamd at /clamd in 1.00 s (try 2)" in text
    assert "kept in quarantine: /spool/virus.AbCdEf" in text
    assert "told: 550 5.7.1 Virus (it was refused for good)" in text


def test_no_verdict_says_why() -> None:
    text = told(whole=2.0, judged=3.0, verdict=Unscanned("it is down"), decision=Defer(), reply=b"451 later\r\n")
    assert "decided: defer, as it is down" in text


def test_a_client_that_left() -> None:
    text = told()
    assert "its text began" in text
    assert "no scanner was asked" in text
    assert text.endswith("no reply (the client left before it was told anything)")


def test_a_verdict_from_another_scan() -> None:
    course = Course()
    course.spared = True
    assert "from the scan of another message with the same octets" in told(
        whole=2.0, judged=3.0, course=course, verdict=Clean()
    )


def event(**changes: Any) -> str:
    return json.dumps({"event": "message.ended", **account(), **changes})


def test_a_log_is_searched_for_the_message() -> None:
    lines = [
        "not json\n",
        '{"event": "message.ended"\n',
        '{"event": "connection.accepted", "connection": "100ABC"}\n',
        event() + "\n",
        "clamsmtpd: " + event(message="100ABC-3") + "\n",
        event(message="100ABD-1", connection="100ABD") + "\n",
    ]
    assert [found["message"] for found in in_log("100ABC", lines)] == ["100ABC-2", "100ABC-3"]
    assert len(in_log("100abc-3", lines)) == 1
    assert len(in_log("4X", lines)) == 3
    assert in_log("queued2", lines) == []


def test_the_command_reads_a_log_and_says_what_it_does_not_know() -> None:
    done = CliRunner().invoke(cli, ["explain", "100ABC-2", "--log", "-"], input=event() + "\n")
    assert done.exit_code == 0
    assert "verdict: clean" in done.output
    done = CliRunner().invoke(cli, ["explain", "100ABC-2", "--log", "-", "--json"], input=event() + "\n")
    assert json.loads(done.output)["messages"][0]["virus"] == ""
    done = CliRunner().invoke(cli, ["explain", "FFFFFF", "--log", "-"], input=event() + "\n")
    assert done.exit_code == 1
    assert done.output == "clamsmtpctl: no message FFFFFF is known here\n"


@given(st.lists(st.text(max_size=80), max_size=5), st.text(max_size=10))
def test_any_log_can_be_searched(lines: list[str], identity: str) -> None:
    wrapped = ['{"event": "message.ended", ' + line for line in lines]
    for found in in_log(identity, [*lines, *wrapped]):
        timeline(found)


@given(
    st.dictionaries(
        st.sampled_from(sorted(account())), st.none() | st.text(max_size=20) | st.floats(0, 1e6) | st.booleans()
    )
)
def test_an_account_from_another_version_is_told_as_far_as_it_goes(odd: dict[str, Any]) -> None:
    odd.pop("recipients", None)
    for name in ("since", "recipients_count", "tries"):
        odd.pop(name, None)
    for line in timeline({**account(), **odd}):
        assert line.isprintable()


def test_what_only_looks_like_ours_is_passed_over() -> None:
    deep = '{"event": "message.ended", "message": "100ABC-2", "x": ' + "[" * 100_000
    odd = [event(since="soon"), event(since=1e300), event(recipients=7), event(recipients_count="many")]
    assert len(in_log("100ABC-2", [deep, *odd, event()])) == 1


def test_no_id_is_no_question_about_all_messages() -> None:
    done = CliRunner().invoke(cli, ["explain", "", "--log", "-"], input=event() + "\n")
    assert done.exit_code == 2
    assert done.output == "clamsmtpctl: give the id of a message\n"


@pytest.mark.parametrize("identity", ["a%2b", "<a/b+c@example.org>", "\udcff", "x" * 20])
def test_any_id_comes_to_the_daemon_as_it_was_given(
    identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "conf"
    path.write_text(f"OutAddress: 127.0.0.1:10026\nAdmin: {tmp_path}/admin\n")
    asked: list[str] = []

    def ask(_address: object, target: str) -> tuple[int, dict[str, Any]]:
        asked.append(unquote(target.removeprefix("/messages/"), errors="surrogateescape"))
        return 404, {}

    monkeypatch.setattr(explain, "ask", ask)
    done = CliRunner().invoke(cli, ["-f", str(path), "explain", identity])
    assert done.exit_code == 1
    assert asked == [identity]
