"""The settings file judged without starting anything."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clamsmtpd.ctl import machine
from clamsmtpd.ctl.certificate import validity
from clamsmtpd.ctl.main import cli
from tests.support.certificates import make_certificate

OUT = "OutAddress: 127.0.0.1:10026\n"


def run(folder: Path, text: str, *arguments: str, clamd: str = "") -> Result:
    path = folder / "conf"
    path.write_text(text.replace("FOLDER", str(folder)))
    (folder / "clamd.conf").write_text(clamd)
    done = CliRunner().invoke(
        cli, ["check", "--offline", "--clamd-conf", str(folder / "clamd.conf"), *arguments, str(path)]
    )
    assert "Traceback" not in done.output
    return done


def test_good_settings_are_good(tmp_path: Path) -> None:
    done = run(tmp_path, OUT + f"TempDirectory: {tmp_path}\nMaxConnections: 10\n")
    assert (done.exit_code, done.output) == (0, f"{tmp_path}/conf: good\n")


def test_all_errors_are_told_in_the_order_of_the_lines(tmp_path: Path) -> None:
    done = run(tmp_path, "Listen: 1\nbad\nWorkers: x\n" + OUT + "Nonsense: 1\nHeader: X: %q\n")
    assert done.exit_code == 2
    assert done.output.replace(str(tmp_path / "conf"), "FILE").splitlines() == [
        'FILE:2: error: "bad" is no setting; write Name: value',
        'FILE:3: error: Workers: "x" is no whole number; give one from 1 to 256, or automatic',
        "FILE:5: error: Nonsense: is no setting; see clamsmtpd.conf(5) for those there are",
        "FILE:6: warning: Header: %q is not known and stands for nothing; there are %i, %l, %d and %%",
        "FILE: 3 errors, 1 warning",
    ]


def test_what_does_not_go_together_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, "TransparentProxy: on\n" + OUT)
    assert done.exit_code == 2
    assert "FILE:2: error: OutAddress: does not go with" in done.output.replace(str(tmp_path / "conf"), "FILE")


def test_a_file_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["-f", str(tmp_path / "none"), "check"])
    assert done.exit_code == 2
    assert "error: cannot be read: No such file or directory" in done.output


def test_what_keeps_the_daemon_from_starting_here_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, OUT + "TempDirectory: FOLDER/none\nUser: no-such-user-here\nTLSCertificate: FOLDER/none.pem\n")
    assert done.exit_code == 2
    told = done.output.replace(str(tmp_path / "conf"), "FILE")
    assert "FILE:2: error: TempDirectory: " in told
    assert "FILE:3: error: " in told
    assert "FILE:4: error: " in told


def test_the_directory_is_judged_as_the_user_that_the_daemon_becomes(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    tmp_path.chmod(0o755)
    (tmp_path / "spool").mkdir(mode=0o700)
    done = run(tmp_path, OUT + "User: nobody\nTempDirectory: FOLDER/spool\nMaxConnections: 10\n")
    assert "conf:3: error: TempDirectory: " in done.output
    assert os.geteuid() == 0


def test_what_contradicts_itself_is_told_beside_lines_that_are_wrong_and_what_is_missing_is_not(tmp_path: Path) -> None:
    done = run(tmp_path, "TransparentProxy: on\nbad\nTLSKey: /k\n" + OUT + "ProxyProtocol: on\n")
    assert [line.split(": ", 2)[2] for line in done.output.splitlines()[:-1]] == [
        '"bad" is no setting; write Name: value',
        "OutAddress: does not go with TransparentProxy: on; leave one of them out",
        "ProxyProtocol: does not go with TransparentProxy: on; leave one of them out",
    ]
    # Any of these may be what the bad line was to be.
    done = run(tmp_path, "TLSKey: /k\nProxyProtocol: on\n")
    assert [line.split(": ")[2] for line in done.output.splitlines()[:-1]] == ["OutAddress", "TLSKey", "ProxyProtocol"]


def test_each_value_of_a_setting_is_judged_in_its_own_line(tmp_path: Path) -> None:
    text = OUT + "ClamAddress: 127.0.0.1\nClamAddress: 192.0.2.9\nListen: 127.0.0.1:1\nListen: 192.0.2.9:1\n"
    done = run(tmp_path, text + f"TempDirectory: {tmp_path}\nMaxConnections: 10\n")
    told = done.output.replace(str(tmp_path / "conf"), "FILE").splitlines()
    assert told[0].startswith("FILE:3: warning: mail goes to clamd at 192.0.2.9:3310 in plain text")
    assert told[1:] == [
        "FILE:5: error: Listen: 192.0.2.9:1: this host has no such address; give one of its own, or a port alone",
        "FILE: 1 error, 1 warning",
    ]


def test_a_note_is_told_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text(OUT + f"TempDirectory: {tmp_path}\n")
    done = CliRunner().invoke(cli, ["check", "--offline", "--clamd-conf", f"{tmp_path}/none", str(path)])
    assert done.exit_code == 0
    assert done.output.replace(str(tmp_path), "FOLDER") == (
        "FOLDER/conf: note: clamd's limits could not be read: FOLDER/none: No such file or directory; "
        "name its settings file with --clamd-conf\n"
        "FOLDER/conf: good\n"
    )


def test_the_settings_of_a_clamd_of_this_host_say_nothing_of_one_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text(OUT + f"ClamAddress: 192.0.2.9\nTempDirectory: {tmp_path}\n")
    done = CliRunner().invoke(cli, ["check", "--offline", str(path)])
    assert "note: clamd's limits could not be read: it is on another host" in done.output
    assert "MaxThreads" not in done.output


def test_sockets_for_owners_that_do_not_exist_are_errors(tmp_path: Path) -> None:
    done = run(tmp_path, OUT + "Listen: FOLDER/s owner=no-such-user-here\nAdmin: FOLDER/a owner=root:no-such-group\n")
    told = done.output.replace(str(tmp_path), "FOLDER")
    assert "conf:2: error: Listen: FOLDER/s: there is no user no-such-user-here" in told
    assert "conf:3: error: Admin: FOLDER/a: there is no group no-such-group" in told


def test_admin_without_its_libraries_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "h11" else find_spec(name))
    assert "conf:2: error: Admin: the Python library h11 is missing" in run(tmp_path, OUT + "Admin: FOLDER/a\n").output


def test_a_port_in_use_may_be_the_daemons(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path, OUT + f"Listen: 127.0.0.1:{port}\nTempDirectory: {tmp_path}\nMaxConnections: 10\n")
    assert done.exit_code == 0


def test_a_certificate_is_read_with_its_key_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_certificate(tmp_path)
    text = OUT + f"TLSCertificate: {made.certificate}\nTLSKey: {made.key}\nMaxConnections: 10\n"
    text += f"TempDirectory: {tmp_path}\n"
    assert run(tmp_path, text).exit_code == 0
    since, _ = validity(made.certificate.read_text())
    monkeypatch.setattr(machine, "validity", lambda _: (since, since + timedelta(seconds=1)))
    done = run(tmp_path, text)
    assert done.exit_code == 1
    assert "conf:2: warning: the certificate has ended on " in done.output
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other")
    made.key.write_bytes(other.key.read_bytes())
    done = run(tmp_path, text)
    assert done.exit_code == 2
    assert "conf:2: error: TLSKey: " in done.output
    assert "is not the key of" in done.output


def test_who_is_not_root_is_told_what_could_not_be_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key"
    key.touch()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    opened = os.open

    def refuse(path: str, *arguments: int, **more: int) -> int:
        if path == str(key):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    text = OUT + f"User: root\nTLSCertificate: {key}\nTempDirectory: FOLDER/none\nMaxConnections: 10\n"
    done = run(tmp_path, text)
    assert done.exit_code == 0
    assert done.output.replace(str(tmp_path), "FOLDER") == (
        "FOLDER/conf:3: note: FOLDER/key is not for us to read; run clamsmtpctl check as root\n"
        "FOLDER/conf:4: note: TempDirectory could not be judged with the rights of root; "
        "run clamsmtpctl check as root\n"
        "FOLDER/conf: good\n"
    )


def test_json_has_the_same(tmp_path: Path) -> None:
    done = run(tmp_path, OUT + "Workers: x\nHeader: X: %q\n", "--json")
    assert done.exit_code == 2
    told = json.loads(done.output)
    assert told == {
        "file": str(tmp_path / "conf"),
        "errors": [{"line": 2, "text": 'Workers: "x" is no whole number; give one from 1 to 256, or automatic'}],
        "warnings": [
            {"line": 3, "text": "Header: %q is not known and stands for nothing; there are %i, %l, %d and %%"}
        ],
        "notes": [],
    }


def test_a_path_like_a_place_in_a_file_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "x:7: y"
    folder.mkdir()
    assert json.loads(run(folder, OUT + "Workers: x\n", "--json").output)["errors"][0]["line"] == 2
