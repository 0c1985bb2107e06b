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
from clamsmtpd.ctl.explain import timeline
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
    text = told(whole=2.0, judged=5.5, course=course, verdict=Clean(), decision=Deliver())
    # It has waited for that other scan.
    assert "4.500 s  verdict: clean, from the scan of another message with the same octets" in text
    assert "4.500 s  decided: deliver" in text


def test_a_verdict_on_what_was_scanned_while_it_came_in() -> None:
    course = Course("/clamd", 2.0, 1, early=True)
    text = told(whole=2.0, judged=2.003, course=course, verdict=Clean())
    assert "by clamd at /clamd in 3 ms after its last octet; it was scanned while it came in" in text


def event(**changes: Any) -> str:
    return json.dumps({"event": "message.ended", **account(), **changes})


def said(name: str, text: str, message: str = "100ABC-2") -> str:
    told_ = {"time": "2027-01-15T08:00:01.000000+00:00", "level": "warning", "event": name}
    return json.dumps({**told_, "connection": "100ABC", "message": message, "text": f"clamsmtpd: 100ABC: {text}"})


def explained(identity: str, *lines: str, options: tuple[str, ...] = (), code: int = 0) -> str:
    given_ = "".join(line + "\n" for line in lines)
    done = CliRunner().invoke(cli, ["explain", identity, "--log", "-", *options], input=given_)
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_reads_a_log_and_says_what_it_does_not_know() -> None:
    assert "verdict: clean" in explained("100ABC-2", event())
    assert explained("FFFFFF", event(), code=1) == "clamsmtpctl: no message FFFFFF is known here\n"
    found = json.loads(explained("100ABC-2", event(), options=("--json",)))
    assert found["messages"][0]["virus"] == ""
    assert found["lines"] == []


def test_what_else_the_log_says_of_the_message_stands_below() -> None:
    text = explained(
        "100ABC-2",
        said("message.judged", "from=a@example.org, status=CLEAN"),
        said("next_hop.refused", "next hop refused the message: 554 no"),
        said("hook.failed", "cannot run the hook: of another", "100ABC-3"),
        event(),
    )
    assert text.partition("\n\n")[2] == (
        "what else the log says\n  2027-01-15T08:00:01.000000+00:00  next hop refused the message: 554 no\n"
    )


def test_a_message_that_has_not_ended_is_told_by_its_lines() -> None:
    text = explained("100ABC-2", said("message.judged", "from=a@example.org, to=b@example.org, status=CLEAN"))
    assert "it has not ended, or this log holds no accounts" in text
    assert "from=a@example.org, to=b@example.org, status=CLEAN" in text


def test_a_text_log_tells_what_its_lines_say() -> None:
    text = explained(
        "100ABC-1",
        "Jan 15 08:00:01 mx clamsmtpd[12]: 100ABC: accepted connection from: 192.0.2.1",
        "Jan 15 08:00:01 mx clamsmtpd[12]: 100ABD: accepted connection from: 192.0.2.2",
        "Jan 15 08:00:02 mx clamsmtpd[12]: 100ABC: from=a@b, to=c@d, status=CLEAN",
    )
    assert text.splitlines()[1:] == [
        "  Jan 15 08:00:01 mx  accepted connection from: 192.0.2.1",
        "  Jan 15 08:00:02 mx  from=a@b, to=c@d, status=CLEAN",
    ]
    shown = json.loads(explained("100ABC", "100ABC: from=a@b, status=CLEAN", options=("--json",)))
    assert shown["lines"] == [{"time": "", "event": "", "message": "", "text": "from=a@b, status=CLEAN"}]


@given(
    st.dictionaries(
        st.sampled_from(sorted(account())),
        st.recursive(
            st.none() | st.text(max_size=20) | st.floats() | st.booleans() | st.integers(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_an_account_from_another_version_is_told_as_far_as_it_goes(odd: dict[str, Any]) -> None:
    for line in [*timeline({**account(), **odd}), *timeline(odd)]:
        assert line.isprintable()


def test_what_only_looks_like_ours_is_passed_over() -> None:
    deep = '{"event": "message.ended", "message": "100ABC-2", "x": ' + "[" * 100_000 + "}"
    odd = [event(since="soon"), event(since=1e300), event(recipients=7), event(recipients_count="many")]
    done = CliRunner().invoke(cli, ["explain", "100ABC-2", "--log", "-"], input="\n".join([deep, *odd, event(), ""]))
    assert done.exit_code == 0
    assert "verdict: clean" in done.output


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
