"""The hook's environment, and hooks as real processes, under both event loops."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd import hooks
from clamsmtpd.account import Tag
from clamsmtpd.hooks import HookRunner, environment
from clamsmtpd.values import Envelope

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}

Run = Callable[[Callable[[HookRunner], Awaitable[None]]], None]


def variables(envelope: Envelope) -> dict[str, bytes]:
    return environment(
        envelope,
        client="192.0.2.1",
        server="192.0.2.25",
        temp_directory="/var/spool/clamsmtpd",
        quarantine_file="/var/spool/clamsmtpd/virus.abcdef",
        virus="Eicar-Test-Signature",
        attachment="Rechnung €.zip\n",
        sha256="0123abcd",
    )


# What a hook is told


def test_everything_that_is_known() -> None:
    told = variables(Envelope(b"a@b", (b"c@d", b"e@f"), b"203.0.113.7", b"mail.example"))
    assert told == {
        "ATTACHMENT": "Rechnung €.zip?".encode(),
        "CLIENT": b"192.0.2.1",
        "EMAIL": b"/var/spool/clamsmtpd/virus.abcdef",
        "PATH": hooks.PATH,
        "RECIPIENTS": b"c@d\ne@f",
        "REMOTE": b"203.0.113.7",
        "REMOTE_HELO": b"mail.example",
        "SENDER": b"a@b",
        "SERVER": b"192.0.2.25",
        "SHA256": b"0123abcd",
        "TMPDIR": b"/var/spool/clamsmtpd",
        "VIRUS": b"Eicar-Test-Signature",
    }


def test_the_table_of_the_manual_has_all_of_them_and_no_other() -> None:
    told = variables(Envelope(b"a@b", (b"c@d",), b"203.0.113.7", b"mail.example"))
    names = [variable.name for variable in hooks.VARIABLES]
    assert names == sorted(told.keys() - {"PATH"})
    assert all(variable.meaning for variable in hooks.VARIABLES)


def test_a_variable_without_a_value_is_absent() -> None:
    told = environment(
        Envelope(remote=b""), client="192.0.2.1", server=None, temp_directory="/tmp", quarantine_file=None, virus="V"
    )
    assert sorted(told) == ["CLIENT", "PATH", "SENDER", "TMPDIR", "VIRUS"]


def test_the_null_sender_is_shown() -> None:
    assert variables(Envelope())["SENDER"] == b"<>"


def test_control_characters_are_replaced() -> None:
    told = variables(Envelope(b"a\r\n\0\x7fb", (b"c\nd", b"e\xc2\x85f"), b"\x1b[1m", b"mail\xc3\xa9"))
    assert told["SENDER"] == b"a????b"
    assert told["RECIPIENTS"] == b"c?d\ne?f"
    assert told["REMOTE"] == b"?[1m"
    assert told["REMOTE_HELO"] == b"mail\xc3\xa9"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"\x9b1m", b"?1m"),
        (b"\xe1\xc2\x9bx", b"\xe1?x"),
        ("\u202egnp.exe\u2069".encode(), b"?gnp.exe?"),
        ("a\u2028b\u2029c".encode(), b"a?b?c"),
        (b"\xff\xfe\xa0 latin \xe9", b"\xff\xfe\xa0 latin \xe9"),
        ("\u4f60\u597d \u2019\u2026".encode(), "\u4f60\u597d \u2019\u2026".encode()),
        (b"-rf", b"-rf"),
        (b"() { :;}; id", b"() { :;}; id"),
        (b"$(id)`id`;|&\"'\\", b"$(id)`id`;|&\"'\\"),
    ],
)
def test_octets_that_are_no_text_and_text_that_is_no_letter(value: bytes, told: bytes) -> None:
    variables_told = variables(Envelope(value, (value,), value, value))
    for name in ("SENDER", "RECIPIENTS", "REMOTE", "REMOTE_HELO"):
        assert variables_told[name] == told
    # What a stranger says is never the name of a variable: BASH_FUNC_x%% cannot come.
    assert set(variables_told) <= {"PATH", *(variable.name for variable in hooks.VARIABLES)}


def test_no_value_is_longer_than_the_kernel_takes() -> None:
    huge = b"x" * 300_000
    told = environment(
        Envelope(huge, (huge, b"c@d"), huge, huge),
        client="192.0.2.1",
        server=None,
        temp_directory="/tmp",
        quarantine_file=None,
        virus="V" * 300_000,
    )
    for name in ("SENDER", "REMOTE", "REMOTE_HELO", "VIRUS"):
        assert len(told[name]) == 8192
    assert told["RECIPIENTS"] == b"x" * 8192 + b"\nc@d"


octets = st.binary(max_size=40)


@given(octets, st.lists(octets, max_size=5).map(tuple), octets, octets)
def test_the_only_line_ends_are_those_between_recipients(
    sender: bytes, recipients: tuple[bytes, ...], remote: bytes, helo: bytes
) -> None:
    for name, value in variables(Envelope(sender, recipients, remote, helo)).items():
        assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]", value)
        assert value.count(b"\n") == (len(recipients) - 1 if name == "RECIPIENTS" else 0)


def test_recipients_that_the_kernel_would_not_take_are_left_out_whole() -> None:
    recipients = tuple(b"%04d" % number + b"x" * 195 for number in range(1000))
    shown = variables(Envelope(b"a@b", recipients))["RECIPIENTS"].split(b"\n")
    assert tuple(shown) == recipients[:500]


# Hooks that run


def _children() -> set[str]:
    """Return the processes of ours that nobody has waited for; other tests have some that run."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """Run a coroutine with a HookRunner. No hook leaves a descriptor or a zombie behind."""
    caplog.set_level(logging.DEBUG, "clamsmtpd")
    logger = logging.getLogger("clamsmtpd")
    propagate, logger.propagate = logger.propagate, True

    def run(story: Callable[[HookRunner], Awaitable[None]]) -> None:
        async def main() -> None:
            runner = HookRunner()
            # What the event loop opens for its first process, it keeps.
            runner.start("exit", {}, Tag("FIRST"))
            await runner.drain(5)
            caplog.clear()
            before = len(os.listdir("/proc/self/fd"))
            await story(runner)
            await runner.drain(5)
            await asyncio.sleep(0)
            assert len(os.listdir("/proc/self/fd")) == before

        children = _children()
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as loop:
            loop.run(main())
        assert _children() == children

    yield run
    logger.propagate = propagate


def test_it_has_the_variables_given_and_no_others(run: Run, tmp_path: Path) -> None:
    async def story(runner: HookRunner) -> None:
        runner.start(f"env > {tmp_path}/env", {"PATH": hooks.PATH, "SENDER": b"$(id) `id`; id\xff"}, Tag("10000F"))
        await runner.drain(5)

    run(story)
    lines = set((tmp_path / "env").read_bytes().splitlines())
    # The shell itself adds where it is.
    assert {line for line in lines if not line.startswith((b"PWD=", b"_=", b"SHLVL=", b"OLDPWD="))} == {
        b"PATH=" + hooks.PATH,
        b"SENDER=$(id) `id`; id\xff",
    }


def test_a_message_to_thousands_has_its_hook_too(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story(runner: HookRunner) -> None:
        told = variables(Envelope(b"a@b", (b"x" * 250,) * 5000))
        runner.start('echo "$VIRUS"', told, Tag("10000F"))
        await runner.drain(5)

    run(story)
    assert caplog.messages == ["10000F: hook: Eicar-Test-Signature", "10000F: hook ended with status 0"]


def test_a_sender_of_a_hundred_thousand_octets_has_its_hook_too(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story(runner: HookRunner) -> None:
        told = variables(Envelope(b"\xff" * 100_000, (b"y" * 300_000,), b"z" * 300_000, b"\x9b" * 300_000))
        runner.start('echo "$VIRUS" ${#RECIPIENTS}', told, Tag("10000F"))
        await runner.drain(5)

    run(story)
    assert caplog.messages == ["10000F: hook: Eicar-Test-Signature 8192", "10000F: hook ended with status 0"]


def test_nothing_of_a_value_is_a_command(run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async def story(runner: HookRunner) -> None:
        for value in (b"() { :;}; echo pwned", b"$(echo pwned)", b"`echo pwned`", b"';echo pwned;'", b"-e pwned"):
            told = variables(Envelope(value, (value,), value, value))
            runner.start('printf "%s|" "$SENDER" "$RECIPIENTS" "$REMOTE" "$REMOTE_HELO"', told, Tag("T"))
            await runner.drain(5)

    run(story)
    shown = [message for message in caplog.messages if "hook: " in message]
    assert shown[0] == "T: hook: " + "() { :;}; echo pwned|" * 4
    assert shown[1:] == [
        f"T: hook: {value * 4}" for value in ("$(echo pwned)|", "`echo pwned`|", "';echo pwned;'|", "-e pwned|")
    ]


def test_those_that_wait_are_bounded_and_the_memory_is_given_back(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hooks, "WAITING_MAX", 200_000)

    async def story(runner: HookRunner) -> None:
        caplog.set_level(logging.INFO, "clamsmtpd")
        for _ in range(hooks.AT_ONCE):
            runner.start("sleep 0.3", {}, Tag("T"))
        told = variables(Envelope(b"a@b", (b"x" * 250,) * 200))
        for number in range(20):
            runner.start(f"echo {number} >> {tmp_path}/ran", told, Tag(f"T{number}"))
        await runner.drain(10)
        assert runner._waiting_octets == 0
        runner.start(f"echo last >> {tmp_path}/ran", told, Tag("T"))
        await runner.drain(10)

    run(story)
    assert sorted((tmp_path / "ran").read_text().split()) == ["0", "1", "2", "3", "last"]
    assert caplog.messages == [f"T{number}: the hook is not run: 4 others wait" for number in range(4, 20)]


def test_output_and_status_are_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story(runner: HookRunner) -> None:
        command = r"echo one; printf 'two\033[1m\n' >&2; printf th; sleep 0.1; printf 'ree\n\nfour'; exit 3"
        runner.start(command, {"PATH": hooks.PATH}, Tag("10000F"))
        await runner.drain(5)

    run(story)
    assert caplog.messages == [
        "10000F: hook: one",
        r"10000F: hook: two\x1B[1m",
        "10000F: hook: three",
        "10000F: hook: ",
        "10000F: hook: four",
        "10000F: hook ended with status 3",
    ]
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


def test_very_long_output_is_cut(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story(runner: HookRunner) -> None:
        runner.start("head -c 300000 /dev/zero | tr '\\0' x; echo; echo end", {"PATH": hooks.PATH}, Tag("T"))
        await runner.drain(5)

    run(story)
    assert caplog.messages == [f"T: hook: {'x' * 1000}", "T: hook: end", "T: hook ended with status 0"]


def test_output_that_no_log_shows_is_not_read(run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async def story(runner: HookRunner) -> None:
        caplog.set_level(logging.INFO, "clamsmtpd")
        runner.start(f"readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2 > {tmp_path}/fds", {}, Tag("T"))
        runner.start("echo out", {}, Tag("T"))
        await runner.drain(5)

    run(story)
    assert (tmp_path / "fds").read_text().splitlines()[::2] == ["/dev/null", "/dev/null"]
    assert caplog.messages == []


def test_standard_input_is_empty_and_no_other_descriptor_is_open(run: Run, tmp_path: Path) -> None:
    async def story(runner: HookRunner) -> None:
        other = os.open(os.devnull, os.O_RDONLY)
        os.set_inheritable(other, True)
        runner.start(f"cat; ls /proc/$$/fd > {tmp_path}/fds; ps -o sid= $$ > {tmp_path}/sid", {}, Tag("T"))
        await runner.drain(5)
        os.close(other)

    run(story)
    descriptors = {int(line) for line in (tmp_path / "fds").read_text().split()}
    # A shell keeps one above 9 while it redirects.
    assert {number for number in descriptors if number < 10} == {0, 1, 2}
    assert int((tmp_path / "sid").read_text()) != os.getsid(0)


def test_a_process_left_behind_does_not_hold_the_slot(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story(runner: HookRunner) -> None:
        started = time.monotonic()
        runner.start("sleep 6 & echo gone", {"PATH": hooks.PATH}, Tag("T"))
        await runner.drain(5)
        assert time.monotonic() - started < 4

    run(story)
    assert caplog.messages == ["T: hook: gone", "T: hook ended with status 0"]


def test_no_more_than_sixteen_run_at_once_and_the_others_wait_in_order(run: Run, tmp_path: Path) -> None:
    async def story(runner: HookRunner) -> None:
        for number in range(40):
            runner.start(f"echo {number:02} >> {tmp_path}/started; sleep 0.2; rm {tmp_path}/x{number}", {}, Tag("T"))
            (tmp_path / f"x{number}").touch()
        await asyncio.sleep(0.1)
        assert len((tmp_path / "started").read_text().split()) <= hooks.AT_ONCE
        await runner.drain(20)

    run(story)
    started = (tmp_path / "started").read_text().split()
    assert sorted(started) == [f"{number:02}" for number in range(40)]
    assert {*started[: hooks.AT_ONCE]} == {f"{number:02}" for number in range(hooks.AT_ONCE)}
    assert not list(tmp_path.glob("x*"))


def test_one_that_cannot_be_started_is_one_line(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story(runner: HookRunner) -> None:
        runner.start("exit", {"HUGE": b"x" * 200_000}, Tag("10000F"))
        await runner.drain(5)
        caplog.set_level(logging.INFO, "clamsmtpd")
        runner.start("exit", {"HUGE": b"x" * 200_000}, Tag("100010"))
        await runner.drain(5)

    run(story)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "10000F: cannot run the hook: Argument list too long"),
        ("ERROR", "100010: cannot run the hook: Argument list too long"),
    ]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
@pytest.mark.parametrize("spare", range(16))
def test_one_for_which_there_are_no_descriptors_leaves_none_open(
    run: Run, caplog: pytest.LogCaptureFixture, level: int, spare: int
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def story(runner: HookRunner) -> None:
        caplog.set_level(level, "clamsmtpd")
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, before[1]))
        try:
            for _ in range(5):
                runner.start("exit", {}, Tag("10000F"))
                await runner.drain(5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        caplog.set_level(logging.DEBUG, "clamsmtpd")
        runner.start("echo again", {"PATH": hooks.PATH}, Tag("T"))
        await runner.drain(5)

    run(story)
    assert caplog.messages[-2:] == ["T: hook: again", "T: hook ended with status 0"]
    failures = [message for message in caplog.messages if "cannot run" in message]
    assert set(failures) <= {"10000F: cannot run the hook: Too many open files"}
    assert spare or len(failures) == 5


def test_one_that_was_killed_is_told_by_its_signal(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story(runner: HookRunner) -> None:
        runner.start("kill -TERM $$", {}, Tag("T"))
        await runner.drain(5)

    run(story)
    assert caplog.messages == ["T: hook ended with status -15"]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_a_drain_ends_in_time(run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path, level: int) -> None:
    async def story(runner: HookRunner) -> None:
        caplog.set_level(level, "clamsmtpd")
        for _ in range(hooks.AT_ONCE + 2):
            runner.start(f"sleep 1; touch {tmp_path}/ended", {"PATH": hooks.PATH}, Tag("T"))
        await asyncio.sleep(0.3)
        started = time.monotonic()
        await runner.drain(0.1)
        assert time.monotonic() - started < 0.8
        await asyncio.sleep(1.5)

    run(story)
    assert caplog.messages == ["16 hooks had not ended, 2 had not started"]
    assert (tmp_path / "ended").exists()


LEAVES_SOME = """
import asyncio, logging, sys, uvloop
from clamsmtpd.account import Tag
from clamsmtpd.hooks import AT_ONCE, HookRunner
logging.basicConfig(level=sys.argv[2], format="%(levelname)s %(message)s")
async def main():
    runner = HookRunner()
    for number in range(AT_ONCE + 1):
        runner.start(f"sleep 1; echo >> {sys.argv[3]}", {}, Tag("T"))
    await runner.drain(0.3)
loop = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.new_event_loop
asyncio.Runner(loop_factory=loop).run(main())
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_those_that_outlast_the_limit_are_left_alone(loop: str, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", LEAVES_SOME, loop, "INFO", str(ended)], check=True, stderr=subprocess.PIPE, text=True
    )
    assert not ended.exists(), f"after {time.monotonic() - started} s"
    assert "WARNING 16 hooks had not ended, 1 had not started" in result.stderr
    deadline = time.monotonic() + 10
    while not ended.exists() or len(ended.read_text()) < hooks.AT_ONCE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
