"""Users and limits. What really becomes of a process is in the integration tests of the daemon's life."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from clamsmtpd import privileges
from clamsmtpd.privileges import become, drop_capabilities, find_user, forbid_core_dumps, raise_descriptor_limit
from clamsmtpd.values import StartError

MODULE = "clamsmtpd.privileges"


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.os.geteuid", lambda: 0)


@pytest.mark.usefixtures("as_root")
def test_a_user_is_found_by_name_and_by_number() -> None:
    nobody = pwd.getpwnam("nobody")
    assert find_user("nobody") == nobody
    assert find_user(str(nobody.pw_uid)) == nobody


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", ["no-such-user", "4000000000", "99999999999999999999", "\u00b2", ""])
def test_a_user_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(StartError, match=f"^User: there is no user {name}; give one that exists$"):
        find_user(name)


def test_only_root_can_become_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.os.geteuid", lambda: 1000)
    with pytest.raises(StartError, match=r"^User: only root can become nobody; start the daemon as root"):
        find_user("nobody")


def test_whoever_is_that_user_already_need_not_become_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(f"{MODULE}.os.geteuid", lambda: nobody.pw_uid)
    assert find_user("nobody") == nobody


def _refuse(*_arguments: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A kernel that does as it is told, for nobody."""
    nobody = pwd.getpwnam("nobody")
    done: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *arguments: done.append(f"{name}{arguments}")

    for name in ("initgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(f"{MODULE}.os.{name}", note(name))
    monkeypatch.setattr(f"{MODULE}.os.setuid", _refuse)
    monkeypatch.setattr(f"{MODULE}.os.getresuid", lambda: (nobody.pw_uid,) * 3)
    monkeypatch.setattr(f"{MODULE}.os.getresgid", lambda: (nobody.pw_gid,) * 3)
    monkeypatch.setattr(f"{MODULE}.os.getgroups", lambda: [nobody.pw_gid])
    return done


def test_groups_go_first_and_the_user_last(calls: list[str]) -> None:
    nobody = pwd.getpwnam("nobody")
    become(nobody)
    assert calls == [
        f"initgroups('nobody', {nobody.pw_gid})",
        f"setresgid({nobody.pw_gid}, {nobody.pw_gid}, {nobody.pw_gid})",
        f"setresuid({nobody.pw_uid}, {nobody.pw_uid}, {nobody.pw_uid})",
    ]


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("setuid", lambda _uid: None),
        ("getresuid", lambda: (65534, 65534, 0)),
        ("getresgid", lambda: (65534, 0, 65534)),
        ("getgroups", lambda: [65534, 0]),
    ],
)
def test_anything_of_root_that_is_left_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[..., object]
) -> None:
    monkeypatch.setattr(f"{MODULE}.os.{name}", fault)
    with pytest.raises(StartError, match=r"^User: became nobody, but rights of root are left$"):
        become(pwd.getpwnam("nobody"))


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("name", ["initgroups", "setresgid", "setresuid"])
def test_a_step_that_fails_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(f"{MODULE}.os.{name}", _refuse)
    with pytest.raises(StartError, match=r"^User: cannot become nobody: Operation not permitted$"):
        become(pwd.getpwnam("nobody"))


@pytest.mark.usefixtures("calls")
def test_who_asks_for_root_stays_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.os.setuid", lambda _uid: pytest.fail("tested for a way back to what it is"))
    become(pwd.getpwuid(0))


class Limits:
    """The kernel's side of RLIMIT_NOFILE."""

    def __init__(self, soft: int, hard: int, *, root: bool) -> None:
        self.now = (soft, hard)
        self._root = root

    def get(self, _which: int) -> tuple[int, int]:
        return self.now

    def set(self, _which: int, wanted: tuple[int, int]) -> None:
        if wanted[1] != self.now[1] and not self._root:
            raise ValueError("not allowed to raise maximum limit")
        self.now = wanted


@pytest.mark.parametrize(
    ("limits", "after", "warns"),
    [
        (Limits(1024, 4096, root=False), (1024, 4096), False),
        (Limits(resource.RLIM_INFINITY, resource.RLIM_INFINITY, root=False), None, False),
        (Limits(256, 4096, root=False), (528, 4096), False),
        (Limits(256, resource.RLIM_INFINITY, root=False), (528, resource.RLIM_INFINITY), False),
        (Limits(256, 300, root=True), (528, 528), False),
        (Limits(256, 328, root=False), (328, 328), True),
    ],
)
def test_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, after: tuple[int, int] | None, warns: bool
) -> None:
    before = limits.now
    monkeypatch.setattr(f"{MODULE}.resource.getrlimit", limits.get)
    monkeypatch.setattr(f"{MODULE}.resource.setrlimit", limits.set)
    warning = raise_descriptor_limit(100)
    assert limits.now == (after or before)
    expected = "MaxConnections: 100 needs 528 open files, the limit is 328; 50 would fit" if warns else None
    assert warning == expected


def test_a_limit_that_nothing_can_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.resource.getrlimit", lambda _which: (64, 64))
    monkeypatch.setattr(f"{MODULE}.resource.setrlimit", _refuse)
    assert raise_descriptor_limit(1) == "MaxConnections: 1 needs 132 open files, the limit is 64; 1 would fit"


def test_the_real_limit_is_raised_no_further_than_needed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = privileges.PER_SESSION * 10 + privileges.RESERVE
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed - 1, hard))
        assert raise_descriptor_limit(10) is None
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (needed, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Rights that are lent


def _in_child(story: Callable[[], bool]) -> bool:
    """Whether the story comes true in a process of its own, which keeps nothing of it."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    status = 1
    with contextlib.suppress(BaseException):
        status = 0 if story() else 1
    os._exit(status)


def _keep_capabilities() -> None:
    """Become nobody, but keep the rights of root, as a service manager can have it."""
    nobody = pwd.getpwnam("nobody")
    # PR_SET_KEEPCAPS
    assert ctypes.CDLL(None).prctl(8, 1, 0, 0, 0) == 0
    os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)


@pytest.mark.root
def test_rights_that_were_lent_are_given_up() -> None:
    def story() -> bool:
        _keep_capabilities()
        before = privileges._capabilities()
        drop_capabilities()
        return before != 0 and privileges._capabilities() == 0

    assert _in_child(story)


@pytest.mark.root
def test_rights_that_cannot_be_given_up_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        @staticmethod
        def capset(_head: bytes, _data: bytes) -> int:
            return -1

    def story() -> bool:
        _keep_capabilities()
        with pytest.raises(StartError, match="rights of root are left that cannot be given up"):
            drop_capabilities()
        return True

    monkeypatch.setattr(ctypes, "CDLL", lambda _name, real=ctypes.CDLL: real(_name) if os.geteuid() == 0 else Libc)
    assert _in_child(story)


@pytest.mark.parametrize(("uid", "held"), [(0, 0x1FF), (1000, 0)])
def test_root_and_those_without_rights_have_none_to_give_up(
    monkeypatch: pytest.MonkeyPatch, uid: int, held: int
) -> None:
    monkeypatch.setattr(f"{MODULE}.os.geteuid", lambda: uid)
    monkeypatch.setattr(privileges, "_capabilities", lambda: held)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: pytest.fail("asked for it"))
    drop_capabilities()


def test_rights_of_every_kind_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr("builtins.open", lambda _path, mode, real=open: real(status, mode))
    for name, bits in (("CapInh", 1), ("CapPrm", 2), ("CapEff", 4), ("CapAmb", 8), ("CapBnd", 0)):
        lines = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), 0)
        lines["CapBnd"] = 0x1FF
        if name != "CapBnd":
            lines[name] = bits
        status.write_text("".join(f"{kind}:\t{value:016x}\n" for kind, value in lines.items()))
        assert privileges._capabilities() == bits
    status.unlink()
    assert privileges._capabilities() == 0


def test_a_crash_leaves_no_mail_on_the_disk() -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        forbid_core_dumps()
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
