"""Several real clamds that are killed, stopped, started anew, blind or small, and what becomes of the mail."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import smtplib
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path

import pytest
import uvloop

from clamsmtpd.clamd import watch as module
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.spool import Spool
from clamsmtpd.values import Address, Clean, Infected, Oversize, Unscanned, Verdict
from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.sink import Sink

pytestmark = pytest.mark.integration

Start = Callable[..., Daemon]

KINDS = ("unix", "tcp")
TEXT = b"Subject: x\r\n\r\nharmless\r\n"
MIB = 1024 * 1024

#: A text that this signature takes clamd long to look at: doubled by each further x.
SLOW = {"slow.ldb": "Slow;Engine:81-255,Target:0;0&1;736c6f77736c6f77;0/(x+x+)+y/\n"}
SLOW_SETTINGS = ("PCREMatchLimit 4000000000", "PCRERecMatchLimit 1000000")


def slow(number: int, length: int) -> bytes:
    return b"slowslow" + b"x" * length + b"zy%d" % number


def address_of(clamd: Clamd, kind: str) -> Address:
    return clamd.unix if kind == "unix" else clamd.tcp


@contextlib.asynccontextmanager
async def pool_of(*addresses: Address, time_out: float = 20) -> AsyncIterator[Pool]:
    pool = Pool(addresses, time_out=time_out)
    pool.start()
    try:
        yield pool
    finally:
        pool.close()
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def message(folder: Path, *pieces: bytes) -> Iterator[Spool]:
    with contextlib.closing(Spool(str(folder), "clamsmtpd-10002A")) as spool:
        for piece in pieces:
            spool.append(piece)
        spool.seal(stuffed=False)
        yield spool


async def judge(pool: Pool, folder: Path, *pieces: bytes) -> Verdict:
    with message(folder, *pieces) as spool:
        return await pool.scan(spool)


async def load(pool: Pool, folder: Path, count: int, faults: Coroutine[object, object, None]) -> list[Verdict]:
    """Have so many messages judged, every second one infected, 20 at once, while something goes wrong."""
    verdicts: dict[int, Verdict] = {}
    left = iter(range(count))

    async def work() -> None:
        for number in left:
            text = (TEXT, b"x" * 700 * (number % 90), EICAR if number % 2 else b"", b"\r\n%d" % number)
            verdicts[number] = await judge(pool, folder, *text)

    wrong = asyncio.create_task(faults)
    await asyncio.gather(*(work() for _ in range(20)))
    assert wrong.done(), "or it came too late to say anything"
    await wrong
    return [verdicts[number] for number in range(count)]


async def all_usable(pool: Pool) -> None:
    async with asyncio.timeout(15):
        while not all(member.usable for member in pool._members):  # noqa: ASYNC110 - the watches see to it
            await asyncio.sleep(0.02)


def truth(count: int) -> list[Verdict]:
    return [Clean(), Infected(EICAR_NAME)] * (count // 2)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- under load ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_two_is_killed_under_load_and_started_again(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(one: Clamd, two: Clamd) -> None:
        async def faults() -> None:
            await asyncio.sleep(0.1)
            one.send(signal.SIGKILL)
            await asyncio.to_thread(one.restart)

        async with pool_of(address_of(one, kind), address_of(two, kind)) as pool:
            await pool.usable()
            assert await load(pool, tmp_path, 3000, faults()) == truth(3000)
            await all_usable(pool)

    with Clamd(log_clean=False) as one, Clamd(log_clean=False) as two:
        version = one.ask(b"VERSION").strip(b"\0").decode()
        uvloop.run(main(one, two))
        lines = warnings(caplog)
        assert lines[0].startswith(f"clamd at {address_of(one, kind)} is set aside: ")
        assert lines[-1] == f"clamd at {address_of(one, kind)} is back: {version}"
        assert not any(str(address_of(two, kind)) in line for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_two_is_stopped_under_load_and_its_scans_go_to_the_other(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SILENCE", 1.0)

    async def main(one: Clamd, two: Clamd) -> None:
        async def faults() -> None:
            await asyncio.sleep(0.1)
            one.send(signal.SIGSTOP)

        async with pool_of(address_of(one, kind), address_of(two, kind), time_out=50) as pool:
            await pool.usable()
            began = time.monotonic()
            try:
                assert await load(pool, tmp_path, 2000, faults()) == truth(2000)
            finally:
                one.send(signal.SIGCONT)
            assert time.monotonic() - began < 15, "none has waited for its own limit"
            await all_usable(pool)

    with Clamd(log_clean=False) as one, Clamd(log_clean=False) as two:
        uvloop.run(main(one, two))
        assert f"clamd at {address_of(one, kind)} is set aside: it is silent: " in "\n".join(warnings(caplog))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reload_under_load_costs_nothing(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main(one: Clamd, two: Clamd) -> None:
        async def faults() -> None:
            await asyncio.sleep(0.1)
            assert await asyncio.to_thread(one.ask, b"RELOAD") == b"RELOADING\0"

        async with pool_of(address_of(one, kind), address_of(two, kind)) as pool:
            await pool.usable()
            assert await load(pool, tmp_path, 2000, faults()) == truth(2000)

    with Clamd(log_clean=False) as one, Clamd(log_clean=False) as two:
        uvloop.run(main(one, two))
        assert "Reading databases" in one.log.read_text()
    assert warnings(caplog) == []


@pytest.mark.parametrize("kind", KINDS)
def test_all_are_down_for_some_seconds_and_every_message_waits(tmp_path: Path, kind: str) -> None:
    async def main(one: Clamd, two: Clamd) -> None:
        async def faults() -> None:
            await asyncio.sleep(0.1)
            one.send(signal.SIGKILL)
            # What is in the hands of both when they die is taken for the cause.
            await asyncio.sleep(0.3)
            two.send(signal.SIGKILL)
            await asyncio.sleep(2)
            await asyncio.to_thread(two.restart)

        async with pool_of(address_of(one, kind), address_of(two, kind)) as pool:
            await pool.usable()
            began = time.monotonic()
            assert await load(pool, tmp_path, 1000, faults()) == truth(1000)
            assert time.monotonic() - began > 2

    with Clamd(log_clean=False) as one, Clamd(log_clean=False) as two:
        uvloop.run(main(one, two))


def test_messages_go_to_the_one_with_the_least_to_do(tmp_path: Path) -> None:
    async def main(one: Clamd, two: Clamd) -> None:
        async with pool_of(one.unix, two.unix) as pool:
            await all_usable(pool)
            assert await asyncio.gather(*(judge(pool, tmp_path, TEXT, b"%d" % n) for n in range(40))) == [Clean()] * 40

    with Clamd() as one, Clamd() as two:
        uvloop.run(main(one, two))
        counts = [clamd.log.read_text().count("memfd:clamsmtpd-10002A") for clamd in (one, two)]
    assert sum(counts) == 40
    assert min(counts) >= 18


# ---- busy is not silent --------------------------------------------------------------------------


def test_a_clamd_whose_threads_are_all_busy_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers VERSION all the time; the canary waits with the messages."""
    monkeypatch.setattr(module, "SILENCE", 1.0)
    monkeypatch.setattr(module, "CANARY_INTERVAL", 0.5)
    monkeypatch.setattr(module, "PULSE_INTERVAL", 0.5)

    async def main(clamd: Clamd, other: Clamd) -> float:
        async with pool_of(clamd.unix, other.unix, time_out=50) as pool:
            await all_usable(pool)
            other.send(signal.SIGKILL)
            began = time.monotonic()
            # Four for two threads.
            texts = [slow(number, 24) for number in range(4)]
            assert await asyncio.gather(*(judge(pool, tmp_path, text) for text in texts)) == [Clean()] * 4
            return time.monotonic() - began

    with Clamd("MaxThreads 2", *SLOW_SETTINGS, database=SLOW) as clamd, Clamd() as other:
        seconds = uvloop.run(main(clamd, other))
        assert not any(str(clamd.unix) in line for line in warnings(caplog))
    assert seconds > 3, "or it was not busy for long enough to say anything"


# ---- up, but of no use ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_clamd_without_its_signatures_gets_no_mail(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(blind: Clamd, good: Clamd) -> None:
        async with pool_of(address_of(blind, kind), address_of(good, kind)) as pool:
            for _ in range(5):
                assert await judge(pool, tmp_path, EICAR) == Infected(EICAR_NAME)
        async with pool_of(address_of(blind, kind), time_out=1) as pool:
            verdict = await judge(pool, tmp_path, TEXT)
            address = address_of(blind, kind)
            assert verdict == Unscanned(f"clamd at {address}: it is blind: it calls the EICAR test file clean")
            # Signatures come, and it sees.
            blind.write_signatures()
            assert await asyncio.to_thread(blind.ask, b"RELOAD") == b"RELOADING\0"
            async with asyncio.timeout(15):
                await pool.usable()
            assert await judge(pool, tmp_path, EICAR) == Infected(EICAR_NAME)

    with (
        Clamd(blind=True, database={"other.ndb": "Other:0:*:6162636465666768696a6b6c6d6e6f\n"}) as blind,
        Clamd() as good,
    ):
        uvloop.run(main(blind, good))
        where = address_of(blind, kind)
        said = [line for line in warnings(caplog) if str(where) in line]
        assert said[:2] == [f"clamd at {where} is set aside: it is blind: it calls the EICAR test file clean"] * 2
        assert said[2].startswith(f"clamd at {where} is back: ClamAV ")
        assert len(said) == 3, "each change is told once"


def test_a_clamd_that_calls_everything_infected_gets_no_mail(tmp_path: Path) -> None:
    async def main(mad: Clamd) -> None:
        async with pool_of(mad.unix, time_out=1) as pool:
            verdict = await judge(pool, tmp_path, TEXT)
            assert isinstance(verdict, Unscanned)
            assert verdict.reason.endswith(": it finds Mad.UNOFFICIAL in a message that is clean")

    with Clamd(database={"mad.ndb": f"Mad:0:*:{b'Subject: '.hex()}\n"}) as mad:
        uvloop.run(main(mad))


def test_an_smtp_server_at_clam_address_is_named(sink: Sink, start_daemon: Start, clamd: Clamd) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {sink.address}", "TimeOut: 2", level=3)
    daemon.wait_for_log(f'clamd at {sink.address} is set aside: it answered "220 ')
    assert "that is an SMTP server, not clamd" in daemon.log()
    with smtplib.SMTP("127.0.0.1", daemon.port) as client, pytest.raises(smtplib.SMTPDataError) as refused:
        client.sendmail("a@example.org", ["b@example.org"], TEXT)
    assert refused.value.smtp_code == 451
    assert daemon.log().count("is set aside") == 1
    assert sink.messages == []


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["MaxFileSize 2M", "MaxScanSize 2M"])
def test_what_one_does_not_look_at_another_does(
    tmp_path: Path, kind: str, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(small: Clamd, large: Clamd) -> None:
        async with pool_of(address_of(small, kind), address_of(large, kind)) as pool:
            await all_usable(pool)
            pool.expect(8 * MIB)
            padding = b"x" * 3 * MIB
            for _ in range(4):
                assert await judge(pool, tmp_path, padding) == Clean()
                assert await judge(pool, tmp_path, EICAR, padding) == Infected(EICAR_NAME)
            async with asyncio.timeout(15):
                while not warnings(caplog):  # noqa: ASYNC110 - the watch learns
                    await asyncio.sleep(0.02)

    with Clamd(setting, log_clean=False) as small, Clamd(log_clean=False) as large:
        uvloop.run(main(small, large))
        where = address_of(small, kind)
    (line,) = warnings(caplog)
    found = re.fullmatch(
        rf"clamd at {re.escape(str(where))} looks at nothing of (\d+) octets and more, but the next hop takes messages "
        rf"of {8 * MIB}: raise .*MaxFileSize and MaxScanSize in clamd.conf",
        line,
    )
    assert found
    assert 2 * MIB < int(found[1]) <= 2 * MIB + 65536


@pytest.mark.parametrize("kind", KINDS)
def test_to_the_octet_nothing_passes_that_was_not_looked_at(tmp_path: Path, kind: str) -> None:
    async def main(clamd: Clamd) -> None:
        async with pool_of(address_of(clamd, kind)) as pool:
            assert await judge(pool, tmp_path, b"x" * MIB) == Clean()
            assert isinstance(await judge(pool, tmp_path, b"x" * (MIB + 1)), Oversize)
            verdict = await judge(pool, tmp_path, EICAR, b"x" * 5 * MIB)
            assert isinstance(verdict, Oversize)
            assert f"clamd at {address_of(clamd, kind)} looks at nothing of {MIB + 1} octets and more" in verdict.reason
            assert await judge(pool, tmp_path, EICAR, b"x" * (MIB - len(EICAR))) == Infected(EICAR_NAME)

    with Clamd("MaxFileSize 1M") as clamd:
        uvloop.run(main(clamd))


def test_without_a_limit_all_is_seen(tmp_path: Path) -> None:
    async def main(clamd: Clamd) -> None:
        async with pool_of(clamd.unix) as pool:
            assert await judge(pool, tmp_path, b"x" * 5 * MIB) == Clean()
            await asyncio.sleep(1)
            assert pool._members[0].limit.seen >= module.LEARN_MAX

    with Clamd("MaxFileSize 0", "MaxScanSize 0") as clamd:
        uvloop.run(main(clamd))


def test_what_clamd_reports_as_too_large_is_believed(tmp_path: Path) -> None:
    async def main(clamd: Clamd) -> None:
        async with pool_of(clamd.unix) as pool:
            verdict = await judge(pool, tmp_path, b"x" * 2 * MIB)
            assert verdict == Infected("Heuristics.Limits.Exceeded.MaxFileSize")

    with Clamd("MaxFileSize 1M", "AlertExceedsMax yes") as clamd:
        uvloop.run(main(clamd))


@pytest.mark.parametrize("kind", KINDS)
def test_a_clamd_that_comes_back_with_a_lower_limit_is_not_believed_for_what_it_could_before(
    tmp_path: Path, kind: str
) -> None:
    async def main(clamd: Clamd) -> None:
        async with pool_of(address_of(clamd, kind)) as pool:
            padding = b"x" * 3 * MIB
            assert await judge(pool, tmp_path, padding) == Clean()
            with clamd._configuration.open("a") as file:
                file.write("MaxFileSize 1M\n")
            await asyncio.to_thread(clamd.restart)
            assert isinstance(await judge(pool, tmp_path, EICAR, padding), Oversize)

    with Clamd() as clamd:
        uvloop.run(main(clamd))


def test_a_message_that_comes_in_early_is_held_against_the_limit_when_it_is_whole(tmp_path: Path) -> None:
    async def main(clamd: Clamd) -> None:
        async with pool_of(clamd.tcp) as pool:
            await pool.usable()
            with contextlib.closing(Spool(str(tmp_path), "clamsmtpd-10002A")) as spool:
                early = pool.begin(spool)
                assert early is not None
                spool.append(EICAR)
                for _ in range(40):
                    spool.append(b"x" * 50_000)
                    await asyncio.sleep(0.001)
                spool.seal(stuffed=False)
                assert isinstance(await pool.scan(spool, early), Oversize)

    with Clamd("MaxFileSize 1M") as clamd:
        uvloop.run(main(clamd))


def test_a_clamd_that_ends_connections_soon_is_asked_more_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(clamd: Clamd) -> None:
        async with pool_of(clamd.unix) as pool:
            await pool.usable()
            await asyncio.sleep(4)
            pulse = pool._members[0].watch._pulse  # type: ignore[union-attr]
            await asyncio.sleep(4)
            assert pool._members[0].watch._pulse is pulse  # type: ignore[union-attr]
            assert await judge(pool, tmp_path, TEXT) == Clean()

    with Clamd("CommandReadTimeout 1", "ReadTimeout 1") as clamd:
        uvloop.run(main(clamd))
    assert warnings(caplog) == []


# ---- through the daemon --------------------------------------------------------------------------


def test_a_next_hop_that_takes_more_than_clamd_looks_at_is_warned_of_once(start_daemon: Start, tmp_path: Path) -> None:
    with (
        Clamd("MaxFileSize 1M", "MaxScanSize 1M") as clamd,
        Sink(extensions=("PIPELINING", "SIZE 20000000")) as sink,
    ):
        daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}")
        for _ in range(2):
            with smtplib.SMTP(daemon.host, daemon.port, timeout=20) as client:
                client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\ntext\r\n")
        line = daemon.wait_for_log("but the next hop takes messages of 20000000")
        assert "raise MaxFileSize and MaxScanSize in clamd.conf" in line
        assert daemon.log().count("but the next hop takes") == 1
        text = b"Subject: x\r\n\r\n" + (b"x" * 98 + b"\r\n") * 12_000 + EICAR
        with (
            smtplib.SMTP(daemon.host, daemon.port, timeout=20) as client,
            pytest.raises(smtplib.SMTPDataError, match=r"4\.3\.5"),
        ):
            client.sendmail("a@example.org", ["b@example.org"], text)
        assert daemon.message_lines()[-1].endswith("status=OVERSIZE")
        assert len(sink.messages) == 2


def test_with_no_clamd_a_message_waits_until_there_is_one(sink: Sink, start_daemon: Start, tmp_path: Path) -> None:
    with Clamd() as clamd:
        daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", level=3)
        daemon.wait_for_log(f"clamd at {clamd.unix}: ClamAV ")
        clamd.send(signal.SIGKILL)
        daemon.wait_for_log(f"clamd at {clamd.unix} is set aside: ")
        with socket.create_connection(("127.0.0.1", daemon.port)) as client:
            client.settimeout(30)
            file = client.makefile("rwb")
            for line in (b"", b"HELO x", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>", b"DATA"):
                if line:
                    file.write(line + b"\r\n")
                    file.flush()
                assert file.readline()[:1] in b"23"
            file.write(TEXT + b".\r\n")
            file.flush()
            client.settimeout(1)
            with pytest.raises(TimeoutError):
                file.readline()
            clamd.restart()
            client.settimeout(30)
            assert client.recv(100).startswith(b"250 ")
        daemon.wait_for_log(f"clamd at {clamd.unix} is back: ClamAV ")
        assert daemon.message_lines() == ["from=a@example.org, to=b@example.org, status=CLEAN"]
    assert len(sink.messages) == 1


def test_a_stop_does_not_wait_for_a_scanner(sink: Sink, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {tmp_path}/nobody")
    with smtplib.SMTP(daemon.host, daemon.port, timeout=20) as client:
        client.ehlo("client.example")
        for line in ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA"):
            client.docmd(line)
        client.send(TEXT + b".\r\n")
        daemon.wait_for_log("is set aside")
        daemon.send(signal.SIGTERM)
        assert client.getreply()[0] == 451
        # The daemon says goodbye behind it.
        assert client.getreply()[0] == 421
    assert daemon.wait(seconds=5) == 0
    assert sink.messages == []


def test_with_no_clamd_at_all_the_client_hears_why_in_the_end(sink: Sink, start_daemon: Start, tmp_path: Path) -> None:
    nobody = [tmp_path / "one", tmp_path / "two"]
    daemon = start_daemon(
        f"OutAddress: {sink.address}", *(f"ClamAddress: {path}" for path in nobody), "TimeOut: 2", level=3
    )
    began = time.monotonic()
    with smtplib.SMTP("127.0.0.1", daemon.port) as client, pytest.raises(smtplib.SMTPDataError) as refused:
        client.sendmail("a@example.org", ["b@example.org"], TEXT)
    assert refused.value.smtp_code == 451
    assert 1.5 < time.monotonic() - began < 4
    reasons = "; ".join(f"clamd at {path}: No such file or directory" for path in nobody)
    assert daemon.wait_for_log("no verdict: ").endswith(f"no verdict: {reasons}")


@pytest.mark.parametrize("addresses", [1, 2])
def test_a_scan_costs_what_one_connection_costs(tmp_path: Path, addresses: int) -> None:
    """The watch holds one connection, and messages share another."""

    async def main(clamd: Clamd) -> int:
        async with pool_of(*[clamd.unix] * addresses) as pool:
            await pool.usable()
            await asyncio.gather(*(judge(pool, tmp_path, TEXT) for _ in range(50)))
            await asyncio.sleep(1)
            return len(os.listdir(f"/proc/{clamd.pid}/fd"))

    with Clamd() as clamd:
        before = len(os.listdir(f"/proc/{clamd.pid}/fd"))
        assert uvloop.run(main(clamd)) - before <= 2 * addresses
