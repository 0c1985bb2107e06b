"""The listeners: places, ids, and accepting when the system says no."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import socket
from pathlib import Path

import pytest

from clamsmtpd import server
from clamsmtpd.commons import Commons
from clamsmtpd.config import load
from clamsmtpd.listeners import Listener
from clamsmtpd.metrics import SCANNERS, SERVING
from clamsmtpd.server import Server
from clamsmtpd.values import StartError, TcpAddress
from tests.support.world import Client, World, run, world


async def greeting(here: World) -> bytes:
    client = await here.client()
    return await client.reply()


def test_one_too_many_is_421_and_the_place_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world(tmp_path, "MaxConnections: 1") as here:
            first = await here.client()
            assert (await first.reply()).startswith(b"220 ")
            for _ in range(3):
                assert (await greeting(here)).startswith(b"421 4.3.2 ")
            assert await first.ask(b"QUIT") == b"221 bye\r\n"
            first.close()
            for _ in range(200):
                if (await greeting(here)).startswith(b"220 "):
                    return
            pytest.fail("the place did not come back")

    run(main())
    # However many are refused, the log says so at a bounded rate.
    assert caplog.text.count("MaxConnections is reached: 1") == 1


def test_ids_are_six_hexadecimal_digits_and_start_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_FIRST_ID", 0xFFFFFE)
    caplog.set_level(logging.INFO, logger="clamsmtpd")

    async def main() -> None:
        async with world(tmp_path) as here:
            for _ in range(3):
                await greeting(here)

    run(main())
    ids = [line.partition(":")[0] for line in caplog.messages if "accepted connection" in line]
    assert ids == ["FFFFFE", "FFFFFF", "FFFFFE"]


def test_no_id_is_given_twice_by_several_workers_and_whoever_takes_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eleven ids for three workers: nine are used.
    monkeypatch.setattr(server, "_FIRST_ID", 0x100000)
    monkeypatch.setattr(server, "_LAST_ID", 0x10000A)
    (tmp_path / "conf").write_text("OutAddress: 25\n")
    settings = load(str(tmp_path / "conf")).settings
    commons = Commons(3, settings.max_connections)

    def serving(worker: int) -> Server:
        return Server(settings, [], share=commons.share(worker))

    async def main() -> None:
        workers = [serving(worker) for worker in range(3)]
        tags = [worker._next_tag() for worker in workers for _ in range(2)]
        commons.forget(1)
        workers[1] = serving(1)
        tags += [worker._next_tag() for worker in workers]
        assert sorted(tags) == [f"10000{number}" for number in range(9)]
        # Then each begins again with its own.
        assert [worker._next_tag() for worker in workers] == [tags[0], tags[2], tags[4]]

    run(main())


class Reluctant(socket.socket):
    """A listener whose next accepts fail with the errors in ``errors``."""

    errors: list[int]
    accepts = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.accepts += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


def reluctant(here: World, *errors: int) -> Reluctant:
    """Put a reluctant listener in place of the server's; it is the same socket."""
    (listener,) = here.server._listeners
    loop = asyncio.get_running_loop()
    loop.remove_reader(listener.socket)
    other = Reluctant(fileno=os.dup(listener.socket.fileno()))
    other.errors = list(errors)
    listener.socket.close()
    here.server._listeners[:] = [Listener(other, listener.listen)]
    loop.add_reader(other, here.server._accept, here.server._listeners[0])
    return other


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_without_a_descriptor_the_one_in_reserve_says_421(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            reluctant(here, code)
            assert (await greeting(here)).startswith(b"421 4.3.2 ")
            assert (await greeting(here)).startswith(b"220 ")

    run(main())
    assert f"cannot accept a connection: {os.strerror(code)}" in caplog.text


def test_without_memory_accepting_pauses_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.1)

    async def main() -> None:
        async with world(tmp_path) as here:
            listener = reluctant(here, errno.ENOMEM, errno.ENOBUFS)
            assert (await greeting(here)).startswith(b"220 ")
            # No busy loop: one try in each pause, not thousands.
            assert listener.accepts < 10

    run(main())


def test_a_connection_that_is_gone_before_it_is_accepted(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            reluctant(here, errno.ECONNABORTED, errno.EPROTO)
            assert (await greeting(here)).startswith(b"220 ")

    run(main())


def test_a_client_that_leaves_at_once_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", here.port)) as gone:
                    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await asyncio.sleep(0.2)
            assert (await greeting(here)).startswith(b"220 ")
            assert len(here.server._sessions) == 1

    run(main())


def test_a_stop_while_accepting_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.05)

    async def main() -> None:
        async with world(tmp_path) as here:
            reluctant(here, errno.ENOMEM)
            streams = await asyncio.open_connection("127.0.0.1", here.port)
            client = Client(*streams)
            here.clients.append(client)
            await asyncio.sleep(0.01)
            here.stop.set()
            await asyncio.sleep(0.15)
            assert here.served.done()

    run(main())


# Other settings


def other(here: World, **changes: object) -> None:
    settings = here.server._setup.host.settings
    here.server.renew(dataclasses.replace(settings, **changes), None)  # type: ignore[arg-type]


def test_who_comes_next_has_other_settings_and_who_is_here_keeps_theirs(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "Header: X-Old: yes") as here:
            old = await here.client()
            await old.envelope()
            other(here, header="X-New: yes")
            new = await here.client()
            await new.envelope()
            assert (await old.message()).startswith(b"250 ")
            assert (await new.message()).startswith(b"250 ")
            assert [b"X-Old" in text for text in here.hop.texts] == [True, False]
            assert b"X-New" in here.hop.texts[1]

    run(main())


def test_the_same_scanners_stay_as_they_are(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            scanners = here.server._setup.scanners
            for header in ("X-A: yes", "X-B: yes"):
                other(here, header=header)
            assert here.server._setup.scanners is scanners
            # Those that nobody ever had are gone.
            assert len(here.server._old_setups) == 1
            assert (await client.message()).startswith(b"250 ")

    run(main())


def test_other_scanners_are_closed_when_their_last_session_has_ended(tmp_path: Path) -> None:
    closed: list[object] = []

    async def main() -> None:
        async with world(tmp_path) as here:
            client = await here.client()
            await client.envelope()
            (first, setup) = (here.server._setup.scanners.pool, here.server._setup)
            first.close = lambda: closed.append(first)  # type: ignore[method-assign]
            # Twice, and the second time nobody has come in between.
            for seconds in (7, 8):
                other(here, time_out=seconds)
            await asyncio.sleep(0.01)
            assert here.server._old_setups == {setup}
            assert closed == []
            assert (await client.message()).startswith(b"250 ")
            await client.ask(b"QUIT")
            client.close()
            await asyncio.sleep(0.1)
            assert closed == [first]
            assert here.server._old_setups == set()
            assert (await greeting(here)).startswith(b"220 ")

    run(main())
    assert len(closed) == 1


def test_scanners_from_before_are_not_counted(tmp_path: Path) -> None:
    async def main() -> None:
        share = Commons(1, 64).share(0)
        async with world(tmp_path, share=share) as here:
            client = await here.client()
            await client.envelope()
            before = here.server._setup.scanners.pool
            other(here, time_out=7)
            assert share.row[SCANNERS] == 1
            share.row[SCANNERS] = 5
            # A session still has them, and one is found to be of no use, or is back.
            before._on_changed()
            assert share.row[SCANNERS] == 5
            assert (await greeting(here)).startswith(b"220 ")

    run(main())


def test_settings_that_cannot_be_used_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_authorities(_level: object) -> None:
        raise StartError("no authorities")

    async def main() -> None:
        async with world(tmp_path) as here:
            before = here.server._setup
            monkeypatch.setattr(server, "client_context", no_authorities)
            with pytest.raises(StartError):
                other(here, time_out=7)
            assert here.server._setup is before
            assert (await greeting(here)).startswith(b"220 ")

    run(main())


# With other workers


def test_a_client_is_left_to_a_worker_with_fewer_sessions_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LEAVE_TO_OTHERS", 0.2)

    async def main() -> None:
        commons = Commons(2, 64)
        commons.share(1).places.open()
        async with world(tmp_path, share=commons.share(0)) as here:
            loop = asyncio.get_running_loop()
            begin = loop.time()
            # So few that it is not worth while to leave one.
            for _ in range(5):
                assert (await greeting(here)).startswith(b"220 ")
            assert loop.time() - begin < 0.15
            # The other one does not take it: it was only left to it, not lost.
            begin = loop.time()
            assert (await greeting(here)).startswith(b"220 ")
            assert loop.time() - begin > 0.15

    run(main())


def test_a_connection_that_another_worker_has_made_goes_in_a_circle(tmp_path: Path) -> None:
    async def main() -> None:
        commons = Commons(2, 64)
        async with world(tmp_path, share=commons.share(0)) as here:
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            ends = (TcpAddress("127.0.0.1", sock.getsockname()[1]), TcpAddress("127.0.0.1", here.port))
            commons.share(1).outgoing.add(ends)
            sock.connect(("127.0.0.1", here.port))
            here.clients.append(Client(*await asyncio.open_connection(sock=sock)))
            assert (await here.clients[0].rest()).startswith(b"421 4.4.6 ")
            assert here.hop.connections == 0

    run(main())


def test_of_clients_who_wait_one_is_taken_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        commons = Commons(2, 64)
        async with world(tmp_path, share=commons.share(0)) as here:
            (listener,) = here.server._listeners
            with contextlib.ExitStack() as stack:
                for _ in range(5):
                    stack.enter_context(socket.create_connection(("127.0.0.1", here.port)))
                here.server._accept(listener)
                assert len(here.server._sessions) == 1
                await asyncio.sleep(0.1)
                assert len(here.server._sessions) == 5

    run(main())


def test_a_stop_while_a_client_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LEAVE_TO_OTHERS", 0.05)

    async def main() -> None:
        commons = Commons(2, 64)
        commons.share(1).places.open()
        async with world(tmp_path, share=commons.share(0)) as here:
            for _ in range(5):
                client = await here.client()
                await client.reply()
            here.clients.append(Client(*await asyncio.open_connection("127.0.0.1", here.port)))
            await asyncio.sleep(0.01)
            assert len(here.server._sessions) == 5
            here.stop.set()
            for client in here.clients:
                client.close()
            await asyncio.sleep(0.15)
            assert here.served.done()

    run(main())


def test_a_server_that_stops_takes_no_more_clients_from_others(tmp_path: Path) -> None:
    async def main() -> None:
        commons = Commons(2, 64)
        async with world(tmp_path, share=commons.share(0)) as here:
            assert commons.metrics.row(0)[SERVING] == 1
            here.stop.set()
            await asyncio.sleep(0.01)
            assert commons.metrics.row(0)[SERVING] == 0

    run(main())


def test_what_is_counted(tmp_path: Path) -> None:
    async def main() -> None:
        commons = Commons(1, 1)
        async with world(tmp_path, "MaxConnections: 1", share=commons.share(0)) as here:
            client = await here.client()
            await client.envelope()
            await greeting(here)
            assert (await client.message(b"Subject: x\r\n\r\n")).startswith(b"250 ")
            counted = dict(pair.split("=") for pair in str(commons.metrics).split(", "))
            del counted["scanners"]
            assert {name: int(number) for name, number in counted.items() if number != "0"} == {
                "connections": 1,
                "refused": 1,
                "clean": 1,
                "octets": 14,
                "sessions": 1,
                "workers": 1,
            }

    run(main())
