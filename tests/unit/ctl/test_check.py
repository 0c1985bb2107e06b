"""The settings file judged without starting anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamsmtpd.config import ConfigError, judge, load
from clamsmtpd.ctl.clamdconf import ClamdSettings, parse_clamd_conf
from clamsmtpd.ctl.findings import Facts, findings
from clamsmtpd.ctl.main import cli

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


def test_json_has_the_same(tmp_path: Path) -> None:
    done = run(tmp_path, OUT + "Workers: x\n", "--json")
    assert done.exit_code == 2
    told = json.loads(done.output)
    assert len(told["errors"]) == 1
    assert told["warnings"] == []


def warned(text: str, facts: Facts, folder: Path) -> list[str]:
    path = folder / "conf"
    path.write_text(text)
    judged = judge(str(path))
    assert judged.settings is not None
    return [found.text for found in findings(judged.settings, facts)]


ROOMY = ClamdSettings(max_threads=64)


@pytest.mark.parametrize(
    ("text", "facts", "words"),
    [
        (OUT, Facts(ClamdSettings(max_file_size=1000, max_threads=64), next_hop_size=2000), "MaxFileSize"),
        (OUT, Facts(ClamdSettings(max_scan_size=1000, max_threads=64), next_hop_size=2000), "MaxScanSize"),
        (OUT, Facts(ClamdSettings(max_file_size=1000, max_threads=64, max_scan_size=0), next_hop_size=0), "any size"),
        (
            OUT + "ClamAddress: 127.0.0.1\n",
            Facts(ClamdSettings(stream_max_length=1000, max_threads=64), next_hop_size=2000),
            "StreamMaxLength",
        ),
        (OUT, Facts(ClamdSettings(max_threads=63)), "MaxThreads"),
        (OUT, Facts(ClamdSettings(max_threads=64, max_queue=63)), "MaxQueue"),
        (OUT, Facts(ClamdSettings(max_threads=64, tcp_port=3310)), "TCPAddr"),
        (OUT + "ClamAddress: 192.0.2.1\n", Facts(ROOMY), "plain text"),
        (OUT + "ClamAddress: scanner.example\n", Facts(ROOMY), "plain text"),
        (OUT + "Admin: 0.0.0.0:9310\n", Facts(ROOMY), "nobody is asked for a password"),
        (OUT, Facts(ROOMY, descriptors=255), "256 descriptors"),
        ("OutAddress: 127.0.0.1:10025\n", Facts(ROOMY), "loop"),
        ("OutAddress: localhost:10025\nListen: 127.0.0.1:10025\n", Facts(ROOMY), "loop"),
        ("OutAddress: 192.0.2.7:10025\n", Facts(ROOMY, own_hosts=frozenset({"192.0.2.7"})), "loop"),
        ("OutAddress: /run/s\nListen: /run/s\n", Facts(ROOMY), "loop"),
    ],
)
def test_what_will_hurt_is_told_once(tmp_path: Path, text: str, facts: Facts, words: str) -> None:
    (told,) = warned(text, facts, tmp_path)
    assert words in told


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (OUT, Facts()),
        (OUT, Facts(ClamdSettings(max_threads=64), next_hop_size=100 * 1024**2)),
        (OUT, Facts(ClamdSettings(0, 0, 0, 64), next_hop_size=0)),
        (OUT, Facts(ClamdSettings(stream_max_length=1000, max_threads=64), next_hop_size=2000)),
        (OUT, Facts(ClamdSettings(max_threads=64, tcp_port=3310, tcp_address="127.0.0.1"))),
        (OUT + "ClamAddress: 127.0.0.1\nAdmin: 9310\n", Facts(ROOMY, descriptors=256)),
        (OUT + "ClamAddress: /a\nClamAddress: /b\n", Facts(ClamdSettings(max_threads=32))),
        ("OutAddress: 192.0.2.7:10025\n", Facts(ROOMY)),
        ("OutAddress: 10025\n", Facts(ROOMY)),
        ("TransparentProxy: on\n", Facts(ROOMY)),
        ("OutAddress: 127.0.0.1:10025\nListen: 192.0.2.1:10025\n", Facts(ROOMY)),
    ],
)
def test_and_what_will_not_is_not(tmp_path: Path, text: str, facts: Facts) -> None:
    assert warned(text, facts, tmp_path) == []


def test_clamd_conf_is_read_as_clamd_reads_it() -> None:
    text = "# MaxThreads 1\nMaxThreads 12\nStreamMaxLength 25M\nMaxFileSize 2g # comment\nmaxscansize 100k\n"
    found = parse_clamd_conf(text + "TCPSocket 3310\nTCPAddr 127.0.0.1\nMaxQueue\nExample\n")
    assert found == ClamdSettings(25 * 1024**2, 2 * 1024**3, 100 * 1024, 12, 100, 3310, "127.0.0.1")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300))
def test_any_clamd_conf_and_any_file_can_be_judged_and_as_the_daemon_does(tmp_path: Path, text: str) -> None:
    parse_clamd_conf(text)
    path = tmp_path / "conf"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    judged = judge(str(path))
    if judged.settings is not None:
        loaded = load(str(path))
        assert judged.settings == loaded.settings
        assert judged.warnings == loaded.warnings
        return
    with pytest.raises(ConfigError) as raised:
        load(str(path))
    assert str(raised.value) in judged.errors
