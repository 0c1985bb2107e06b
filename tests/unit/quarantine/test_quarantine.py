"""The index of the quarantine, releasing, and the commands over both."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.ctl.main import cli
from clamsmtpd.quarantine.expiry import choose, expire
from clamsmtpd.quarantine.index import DIRECTORY, Culprit, Entry, Index, IndexFaultError
from clamsmtpd.quarantine.keeper import Keeper
from clamsmtpd.quarantine.release import Courier, release
from clamsmtpd.values import Keep, NextHop, OutTls, TcpAddress
from tests.support.sink import TEXT, Cut, Sink

TEXTS = [b"", b"a", b".\r\n..\r\n.x", b"A: b\r\n\r\n.\rlone\n.x\n.y\r\n", b"x\r\n.\r\nQUIT\r\n", b"\0\xff\r"]


def kept(folder: Path, text: bytes = b"A: b\r\n\r\ntext\r\n", name: str = "AbCd01") -> Entry:
    (folder / f"virus.{name}").write_bytes(text)
    return Entry(name, 1e9, sender=b"s@example.org", recipients=(b"r@example.org", b"q@example.org"), virus="Eicar")


def stuffed(text: bytes) -> bytes:
    text = (b"\r\n" + text).replace(b"\r\n.", b"\r\n..")[2:]
    return text if text.endswith(b"\r\n") else text + b"\r\n"


@given(sender=st.binary(), recipients=st.lists(st.binary()), name=st.text())
def test_whatever_an_envelope_has_comes_back(
    tmp_path_factory: pytest.TempPathFactory, sender: bytes, recipients: list[bytes], name: str
) -> None:
    index = Index(str(tmp_path_factory.mktemp("q")))
    entry = Entry("AbCd01", 1.5, None, sender, tuple(recipients), culprit=Culprit(name, "00"))
    index.add(entry)
    assert index.entries() == [entry]
    index.close()


def _add(folder: str, first: int) -> None:
    index = Index(folder)
    for number in range(first, first + 50):
        index.add(Entry(f"{number:06}", 1.0))
    index.close()


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add, args=(str(tmp_path), first)) for first in (0, 500)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    index = Index(str(tmp_path))
    assert len(index.entries()) == 100
    index.close()


def test_a_corrupt_index_is_moved_aside_and_made_anew(tmp_path: Path) -> None:
    kept(tmp_path)
    folder = tmp_path / DIRECTORY
    folder.mkdir(mode=0o700)
    (folder / "index.db").write_bytes(b"no database" * 1000)
    index = Index(str(tmp_path))
    index.heal(time.time())
    assert [entry.id for entry in index.entries()] == ["AbCd01"]
    assert list(folder.glob("index.db.corrupt-*"))
    index.close()


@pytest.mark.parametrize("way", ["link", "writable", "file"])
def test_a_directory_that_may_be_a_strangers_is_not_used(tmp_path: Path, way: str) -> None:
    folder = tmp_path / DIRECTORY
    if way == "link":
        (tmp_path / "other").mkdir()
        folder.symlink_to(tmp_path / "other")
    elif way == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(IndexFaultError):
        Index(str(tmp_path))


def test_healing_takes_files_in_and_misses_what_is_gone_and_follows_no_link(tmp_path: Path) -> None:
    kept(tmp_path)
    (tmp_path / "virus.LinkLi").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "virus.FifoFi")
    index = Index(str(tmp_path))
    index.heal(time.time())
    assert [(entry.id, entry.size, entry.recipients) for entry in index.entries()] == [("AbCd01", 14, None)]
    (tmp_path / "virus.AbCd01").unlink()
    index.heal(time.time())
    assert [entry.fate for entry in index.entries(None)] == ["gone"]
    index.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_where_all_may_write_a_strangers_file_is_not_taken_in(tmp_path: Path) -> None:
    kept(tmp_path)
    kept(tmp_path, name="Strang")
    os.chown(tmp_path / "virus.Strang", 65534, 65534)
    index = Index(str(tmp_path))
    # As /tmp is: by its size alone it would have the others expired.
    tmp_path.chmod(0o1777)
    index.heal(time.time())
    assert [entry.id for entry in index.entries()] == ["AbCd01"]
    # Here, who may write is for the directory's owner to say.
    tmp_path.chmod(0o755)
    index.heal(time.time())
    assert [entry.id for entry in index.entries()] == ["AbCd01", "Strang"]
    tmp_path.chmod(0o1777)
    index.heal(time.time())
    assert [entry.fate for entry in index.entries(None)] == ["kept", "gone"]
    index.close()


def test_the_oldest_go_first_by_age_and_by_size() -> None:
    entries = [Entry(str(at), float(at), size=10) for at in (3, 1, 2)]
    assert [entry.id for entry in choose(entries, Keep(octets=20), 4)] == ["1"]
    assert [entry.id for entry in choose(entries, Keep(seconds=1), 3.5)] == ["1", "2"]
    assert choose(entries, Keep(octets=30), 4) == []


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_a_released_message_is_the_same_octets_with_a_field_on_top(tmp_path: Path, text: bytes, *, lmtp: bool) -> None:
    entry = kept(tmp_path, text)
    index = Index(str(tmp_path))
    index.add(entry)
    with Sink(lmtp=lmtp) as sink:
        courier = Courier(NextHop(sink.address, lmtp), OutTls.OFF, None)
        outcome = None
        for _ in range(2):
            outcome = release(
                index, str(tmp_path), entry, courier, sender=b"s@example.org", recipients=entry.recipients or ()
            )
        assert outcome is not None
        assert [one.state for one in outcome.held] == ["released", "released"]
        assert outcome.done == ()
        assert len(sink.recorded) == 1
        assert sink.recorded[0].text == stuffed(b"X-Virus-Released: Eicar; id=AbCd01; by=clamsmtpctl\r\n" + text)
    index.close()


@pytest.mark.parametrize("end", [b"\n.\n", b"\n.\r\n"])
def test_what_a_lenient_next_hop_takes_for_two_messages_is_not_released(tmp_path: Path, end: bytes) -> None:
    # By BDAT it may have come, as there nothing in the text is an end.
    entry = kept(tmp_path, b"A: b\r\n\r\nEICAR" + end + b"MAIL FROM:<x@example.org>\r\n")
    index = Index(str(tmp_path))
    index.add(entry)
    with Sink() as sink:
        courier = Courier(NextHop(sink.address), OutTls.OFF, None)
        outcome = release(index, str(tmp_path), entry, courier, sender=b"", recipients=(b"r@example.org",))
        assert [one.state for one in outcome.done] == ["refused"]
        assert "export it" in outcome.done[0].reply
        assert sink.recorded == []
    index.close()


def test_a_next_hop_that_has_no_name_that_could_be_asked_for_refuses(tmp_path: Path) -> None:
    entry = kept(tmp_path)
    index = Index(str(tmp_path))
    courier = Courier(NextHop(TcpAddress("a" * 70 + ".example", 25)), OutTls.OFF, None)
    outcome = release(index, str(tmp_path), entry, courier, sender=b"", recipients=(b"r@example.org",))
    assert [one.state for one in outcome.done] == ["refused"]
    index.close()


def test_of_two_messages_none_is_released_if_one_cannot_be(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    index.add(kept(tmp_path))
    index.close()
    kept(tmp_path, name="AbCd02")
    os.utime(tmp_path / "virus.AbCd02", (1e9, 1e9))
    path = tmp_path / "conf"
    with Sink() as sink:
        path.write_text(f"OutAddress: {sink.address}\nTempDirectory: {tmp_path}\n")
        done = CliRunner().invoke(cli, ["-f", str(path), "quarantine", "release", "AbCd01", "AbCd02"])
        assert done.exit_code == 2
        assert sink.recorded == []


def test_a_connection_that_breaks_behind_the_text_leaves_it_uncertain(tmp_path: Path) -> None:
    entry = kept(tmp_path)
    index = Index(str(tmp_path))
    index.add(entry)
    with Sink({TEXT: Cut()}) as sink:
        courier = Courier(NextHop(sink.address), OutTls.OFF, None)
        outcome = release(index, str(tmp_path), entry, courier, sender=b"", recipients=(b"r@example.org",))
        assert [one.state for one in outcome.done] == ["releasing"]
        outcome = release(index, str(tmp_path), entry, courier, sender=b"", recipients=(b"r@example.org",))
        assert [one.state for one in outcome.held] == ["releasing"]
    index.close()


def test_the_keeper_writes_down_what_it_is_told(tmp_path: Path) -> None:
    entry = kept(tmp_path)
    keeper = Keeper(str(tmp_path))
    keeper.record(str(tmp_path / entry.name), entry)
    keeper.note_culprit(str(tmp_path / entry.name), "a.exe", "00")
    keeper.retire()
    keeper.join()
    index = Index(str(tmp_path))
    (found,) = index.entries()
    assert (found.size, found.culprit, found.sender) == (14, Culprit("a.exe", "00"), b"s@example.org")
    index.close()


def test_a_keeper_without_a_thread_costs_entries_and_no_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    entry = kept(tmp_path)
    keeper = Keeper(str(tmp_path), Keep(seconds=1), tends=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        keeper.start()
        keeper.record(str(tmp_path / entry.name), entry)
        keeper.retire()
        keeper.join()
    assert [record.getMessage() for record in caplog.records] == [
        "the quarantine's files are kept, but not all of them are written down: can't start new thread"
    ]


def test_an_entry_that_cannot_be_written_down_does_not_cost_the_next(tmp_path: Path) -> None:
    entry = kept(tmp_path)
    keeper = Keeper(str(tmp_path))
    # A character that SQLite does not have.
    keeper.record(str(tmp_path / entry.name), replace(entry, virus="\udcff"))
    keeper.record(str(tmp_path / entry.name), entry)
    keeper.retire()
    keeper.join()
    index = Index(str(tmp_path))
    assert [entry.virus for entry in index.entries()] == ["Eicar"]
    index.close()


def test_the_commands(tmp_path: Path) -> None:
    entry = kept(tmp_path)
    index = Index(str(tmp_path))
    index.add(entry)
    index.close()
    with Sink() as sink:
        settings = tmp_path / "settings"
        settings.write_text(f"OutAddress: {sink.address}\nTempDirectory: {tmp_path}\nQuarantine: on\n")

        def run(*words: str, status: int = 0) -> Any:
            result = CliRunner().invoke(cli, ["-f", str(settings), "quarantine", *words])
            assert result.exit_code == status, result.output
            return result.output

        assert json.loads(run("list", "--json"))["messages"][0]["id"] == "AbCd01"
        assert "Eicar" in run("list")
        assert "A: b" in run("show", "Ab")
        run("export", "Ab", str(settings), status=1)
        assert "would be released" in run("release", "Ab", "--dry-run")
        assert "released: r@example.org" in run("release", "virus.AbCd01")
        assert "already released to r@example.org" in run("release", "Ab")
        assert len(sink.recorded) == 1
        assert "would expire: AbCd01" in run("expire", "--keep", "1d", "--dry-run")
        run("delete", "Ab", "--yes")
        assert not (tmp_path / entry.name).exists()
        assert "deleted" in run("show", "Ab")
        run("release", "Zz", status=1)


@pytest.mark.parametrize("name", ["", "%", "\udcff", "virus.", "../x", "A" * 9000])
@pytest.mark.parametrize("command", ["show", "release", "delete", "export"])
def test_a_name_that_none_can_have_is_in_no_quarantine(tmp_path: Path, command: str, name: str) -> None:
    kept(tmp_path)
    path = tmp_path / "conf"
    path.write_text(f"OutAddress: 127.0.0.1:1\nTempDirectory: {tmp_path}\n")
    done = CliRunner().invoke(cli, ["-f", str(path), "quarantine", command, name])
    assert done.exit_code == 1
    assert done.output.endswith(": not in quarantine\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be led to become another user")
def test_root_does_not_become_whoever_has_made_the_index(tmp_path: Path) -> None:
    folder = tmp_path / DIRECTORY
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    path = tmp_path / "conf"
    path.write_text(f"OutAddress: 127.0.0.1:1\nTempDirectory: {tmp_path}\nUser: nobody\n")
    done = CliRunner().invoke(cli, ["-f", str(path), "quarantine", "list"])
    assert done.exit_code == 3
    assert "belongs to user 12345, and not to nobody (User); remove it" in done.output
    assert os.geteuid() == 0


def test_a_file_that_cannot_be_removed_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(str(tmp_path))
    for name in ("AbCd01", "AbCd02"):
        index.add(replace(kept(tmp_path, name=name), size=14))
    unlink = os.unlink

    def refuse(path: str) -> None:
        if path.endswith("AbCd01"):
            raise PermissionError(1, "Operation not permitted", path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError):
        list(expire(index, str(tmp_path), Keep(seconds=1), time.time()))
    assert [entry.id for entry in index.entries()] == ["AbCd01"]
    assert not (tmp_path / "virus.AbCd02").exists()
    index.close()
