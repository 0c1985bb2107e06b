"""Messages that lie in files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamsmtpd.ctl import saved
from clamsmtpd.ctl.saved import Saved, find, octets_in, pieces

FROM = b"From a@example.com Thu Jan  1 00:00:00 2026\n"


def texts(path: Path) -> list[bytes]:
    return [b"".join(pieces(found)) for found in find([str(path)])]


def test_a_file_is_a_message_whose_lines_end_as_in_mail(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"Subject: x\n\none\r\ntwo\rthree\r")
    assert list(find([str(path)])) == [Saved(str(path), str(path))]
    assert texts(path) == [b"Subject: x\r\n\r\none\r\ntwo\rthree\r"]


def test_a_line_end_is_the_same_wherever_a_piece_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"a\r\nb\nc\rd\r\r\n\n")
    for size in range(1, 14):
        monkeypatch.setattr(saved, "PIECE", size)
        assert texts(path) == [b"a\r\nb\r\nc\rd\r\r\n\r\n"]


def test_an_mbox_is_cut_at_the_lines_that_hold_a_time(tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    one, two = b"Subject: 1\n\nFrom a\n\nFrom here on\n", b"Subject: 2\n\nlast\n"
    path.write_bytes(FROM + one + b"\n" + FROM + two + b"\n" + FROM)
    found = list(find([str(path)]))
    assert [each.name for each in found] == [f"{path}#1", f"{path}#2", f"{path}#3"]
    assert [b"".join(pieces(each)).replace(b"\r", b"") for each in found] == [one, two, b""]
    assert [each.octets for each in found] == [len(one), len(two), 0]


def test_a_line_like_a_separator_in_the_midst_of_text_is_text(tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    path.write_bytes(FROM + b"Subject: 1\n\ntext\n" + FROM)
    assert len(list(find([str(path)]))) == 1


def test_a_long_line_of_an_mbox_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "PIECE", 64)
    path = tmp_path / "mbox"
    # Behind the 64th octet there is an empty "line", and then a separator: in truth both are of one line.
    path.write_bytes(FROM + b"x" * 64 + b"\n" + FROM + b"\n\n" + FROM)
    assert len(list(find([str(path)]))) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=40).filter(lambda text: b"From " not in text), min_size=1, max_size=5))
def test_what_is_put_into_an_mbox_comes_out_again(tmp_path: Path, bodies: list[bytes]) -> None:
    path = tmp_path / "mbox"
    path.write_bytes(b"".join(FROM + b"S: x\n\n" + body + b"\n\n" for body in bodies))
    found = list(find([str(path)]))
    octets = path.read_bytes()
    assert [octets[each.start : each.end] for each in found] == [b"S: x\n\n" + body + b"\n" for body in bodies]


def test_a_folder_is_gone_through_and_of_a_maildir_what_has_arrived(tmp_path: Path) -> None:
    for folder in ("cur", "new", "tmp", ".Sent/cur", ".Sent/new", ".Sent/tmp", "plain"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("cur/1", "new/2", "tmp/3", ".Sent/cur/4", "subscriptions", "plain/5", "plain/.hidden"):
        (tmp_path / name).write_bytes(b"text")
    os.mkfifo(tmp_path / "plain/pipe")
    (tmp_path / "plain/link").symlink_to("5")
    names = [os.path.relpath(each.path, tmp_path) for each in find([str(tmp_path)])]
    assert names == [".Sent/cur/4", "cur/1", "new/2", "plain/5"]
    assert octets_in([str(tmp_path), "-", str(tmp_path / "none")]) == 16


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (found,) = find([str(tmp_path)])
    assert (found.name, found.fault) == (str(tmp_path / "closed"), "Permission denied")


def test_what_is_not_there_is_for_its_reader_to_tell(tmp_path: Path) -> None:
    (found,) = find([str(tmp_path / "none")])
    with pytest.raises(FileNotFoundError):
        list(pieces(found))
    assert found.octets == 0
