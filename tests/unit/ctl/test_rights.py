"""The rights of the daemon's user."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from clamsmtpd.ctl.asuser import as_user
from clamsmtpd.ctl.rights import Barrier, Entry, barrier, entries, group_name, user_name

FOLDER, SOCKET = stat.S_IFDIR, stat.S_IFSOCK


def way(folder: int, socket: int) -> list[Entry]:
    return [
        Entry("/", 0, 0, FOLDER | 0o755),
        Entry("/run", 7, 70, FOLDER | folder),
        Entry("/run/s", 7, 70, SOCKET | socket),
    ]


@pytest.mark.parametrize(
    ("uid", "groups", "folder", "socket", "stopped"),
    [
        (1, {1}, 0o755, 0o666, None),
        (1, {1}, 0o755, 0o660, "/run/s"),
        (1, {1, 70}, 0o755, 0o660, None),
        (1, {1, 70}, 0o755, 0o644, "/run/s"),
        (1, {1}, 0o750, 0o666, "/run"),
        (1, {1, 70}, 0o750, 0o666, None),
        (7, {1}, 0o700, 0o600, None),
        # The owner's bits count for the owner, whatever all others may.
        (7, {1}, 0o755, 0o066, "/run/s"),
        (1, {1, 70}, 0o705, 0o666, "/run"),
        (0, {0}, 0o000, 0o000, None),
    ],
)
def test_who_is_stopped_where(uid: int, groups: set[int], folder: int, socket: int, stopped: str | None) -> None:
    found = barrier(way(folder, socket), uid, frozenset(groups))
    assert (found and found.entry.path) == stopped


def test_whether_the_group_would_help() -> None:
    assert Barrier(Entry("/s", 7, 70, SOCKET | 0o660), "w").group_may
    assert not Barrier(Entry("/s", 7, 70, SOCKET | 0o640), "w").group_may
    assert Barrier(Entry("/d", 7, 70, FOLDER | 0o710), "x").group_may
    assert not Barrier(Entry("/d", 7, 70, FOLDER | 0o760), "x").group_may


def test_links_are_followed_to_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    found = [entry.path for entry in entries(str(tmp_path / "link" / "file"))]
    assert found[0] == "/"
    assert found[-2:] == [str(tmp_path / "real"), str(tmp_path / "real" / "file")]
    assert entries(str(tmp_path / "none"))[-1].path == str(tmp_path)


def test_names_are_numbers_where_there_are_none() -> None:
    assert (user_name(0), group_name(0)) == ("root", "root")
    assert (user_name(4_000_000_000), group_name(4_000_000_000)) == ("4000000000", "4000000000")


@pytest.mark.root
def test_root_tries_on_the_rights_of_another_and_keeps_its_own(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    assert as_user("nobody", os.geteuid) == nobody
    assert os.geteuid() == 0
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    assert as_user("nobody", lambda: os.access(secret, os.R_OK)) is False
    assert as_user(None, os.geteuid) == as_user("no such user", os.geteuid) == 0


@pytest.mark.root
def test_what_fails_there_is_done_here() -> None:
    parent = os.getpid()

    def fail_elsewhere() -> int:
        assert os.getpid() == parent
        return 7

    assert as_user("nobody", fail_elsewhere) == 7


def test_whoever_is_not_root_does_it_as_who_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert as_user("nobody", os.getpid) == os.getpid()
