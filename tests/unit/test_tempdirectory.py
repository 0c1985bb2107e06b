"""Directories that mail may and may not go through. Whether the tests run as root is not their matter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clamsmtpd.tempdirectory import _steps, check_temp_directory
from clamsmtpd.values import StartError

STRANGER = 4321


def refuse(path: Path | str) -> str:
    with pytest.raises(StartError) as refused:
        check_temp_directory(str(path))
    line = str(refused.value)
    assert line.startswith("TempDirectory: ")
    assert "\n" not in line
    return line


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Paths, and who owns them, contrary to the truth."""
    claimed: dict[str, int] = {}
    real = os.lstat

    def lstat(path: str) -> os.stat_result:
        status = real(path)
        return os.stat_result((*status[:4], claimed.get(path, status.st_uid), *status[5:]))

    monkeypatch.setattr("clamsmtpd.tempdirectory.os.lstat", lstat)
    return claimed


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o770, 0o755, 0o1777, 0o1770, 0o3777])
def test_a_directory_of_ours(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert check_temp_directory(str(tmp_path)) == []


def test_tmp_itself() -> None:
    assert check_temp_directory("/tmp") == []


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_temp_directory(".") == []
    tmp_path.chmod(0o777)
    refuse(".")


def test_a_full_path_needs_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert check_temp_directory(str(tmp_path)) == []


def test_one_that_is_missing(tmp_path: Path) -> None:
    line = refuse(tmp_path / "missing")
    assert line == f"TempDirectory: {tmp_path}/missing: No such file or directory; give a directory that exists"


@pytest.mark.parametrize("kind", ["file", "fifo", "link to a file"])
def test_one_that_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "path"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "file":
        path.touch(0o777)
    else:
        path.symlink_to("/etc/passwd")
    assert refuse(path) == f"TempDirectory: {path} is no directory; give one"


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "Too many levels of symbolic links" in refuse(tmp_path / "a")
    # Should they come to be one only now.
    assert len(list(_steps(str(tmp_path / "a")))) < 100


def test_one_that_we_may_not_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clamsmtpd.tempdirectory.os.access", lambda _path, _mode: False)
    line = refuse(tmp_path)
    assert line == f"TempDirectory: cannot write to {tmp_path}; give a directory that the daemon's user owns"


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o2777, 0o733])
def test_others_may_write_and_there_is_no_sticky_bit(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert refuse(tmp_path) == (
        f"TempDirectory: others may remove and replace what is in {tmp_path}; take their right to write away, "
        "or set the sticky bit (chmod o-w, or chmod +t)"
    )


def test_others_may_replace_a_directory_on_the_way(tmp_path: Path) -> None:
    spool = tmp_path / "open" / "between" / "spool"
    spool.mkdir(parents=True)
    spool.chmod(0o700)
    (tmp_path / "open").chmod(0o777)
    assert refuse(spool) == (
        f"TempDirectory: {spool}: others may replace {tmp_path}/open/between, as {tmp_path}/open has no sticky bit; "
        "give a directory whose way there is safe"
    )
    (tmp_path / "open").chmod(0o1777)
    assert check_temp_directory(str(spool)) == []


def test_a_link_of_ours_is_as_good_as_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "deep").mkdir()
    for name, target in (("absolute", str(tmp_path / "target")), ("deep/relative", "../target/.")):
        link = tmp_path / name
        link.symlink_to(target)
        (tmp_path / "target").chmod(0o700)
        assert check_temp_directory(str(link)) == []
        (tmp_path / "target").chmod(0o777)
        refuse(link)


def test_the_directory_above_a_link_is_that_of_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "spool").mkdir()
    (tmp_path / "link").symlink_to("a/b")
    steps = [entry for _, entry in _steps(f"{tmp_path}/link/../../spool")]
    assert steps[-4:] == [f"{tmp_path}/link", f"{tmp_path}/a", f"{tmp_path}/a/b", f"{tmp_path}/spool"]


@pytest.mark.parametrize("target", ["safe/spool", "../{folder}/safe/spool", "{tmp_path}/safe/spool"])
def test_the_way_behind_a_link_counts_too(tmp_path: Path, target: str) -> None:
    (tmp_path / "safe" / "spool").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(target.format(folder=tmp_path.name, tmp_path=tmp_path))
    assert check_temp_directory(str(link)) == []
    (tmp_path / "safe").chmod(0o777)
    assert f"others may replace {tmp_path}/safe/spool" in refuse(link)


def test_a_link_that_others_may_replace(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(0o700)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "link").symlink_to(tmp_path / "target")
    assert f"others may replace {tmp_path}/open/link" in refuse(tmp_path / "open" / "link")


@pytest.mark.parametrize("link", [False, True])
def test_where_anybody_may_make_one_it_must_be_ours(tmp_path: Path, owners: dict[str, int], link: bool) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    spool = shared / "spool"
    if link:
        (tmp_path / "target").mkdir(0o700)
        spool.symlink_to(tmp_path / "target")
    else:
        spool.mkdir()
        spool.chmod(0o1777)
    owners[str(spool)] = STRANGER
    assert refuse(spool) == (
        f"TempDirectory: {spool}: {spool} belongs to user {STRANGER}, and anybody could have made it there; "
        "give a directory that root or the daemon's user owns"
    )
    owners[str(spool)] = os.geteuid()
    assert check_temp_directory(str(spool)) == []
    owners[str(spool)] = 0
    assert check_temp_directory(str(spool)) == []


def test_elsewhere_its_owner_is_for_the_administrator_to_say(tmp_path: Path, owners: dict[str, int]) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    owners[str(spool)] = STRANGER
    assert check_temp_directory(str(spool)) == []


def test_a_group_that_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path.stat().st_gid
    tmp_path.chmod(0o770)
    assert check_temp_directory(str(tmp_path)) == []
    real = os.stat

    def stat(path: str) -> os.stat_result:
        status = real(path)
        return os.stat_result((*status[:5], STRANGER, *status[6:]))

    monkeypatch.setattr("clamsmtpd.tempdirectory.os.stat", stat)
    warning = f"TempDirectory: members of group {STRANGER} may remove and replace what is in {tmp_path}"
    assert check_temp_directory(str(tmp_path)) == [warning]
    monkeypatch.setattr("clamsmtpd.tempdirectory.os.getgroups", lambda: [group, STRANGER])
    assert check_temp_directory(str(tmp_path)) == [], "it is how clamd and we share it"
    monkeypatch.setattr("clamsmtpd.tempdirectory.os.getgroups", lambda: [group])
    for mode in (0o1770, 0o750):
        tmp_path.chmod(mode)
        assert check_temp_directory(str(tmp_path)) == []


def test_one_that_vanishes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clamsmtpd.tempdirectory.os.lstat", lambda _path: os.stat(tmp_path / "missing"))
    assert "No such file or directory" in refuse(tmp_path)
