"""All that is wrong with a settings file, in one go."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamsmtpd.config import ConfigError, judge, load

OUT = "OutAddress: 127.0.0.1:10026\n"


def judged_errors(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [error.replace(str(path), "FILE") for error in judge(str(path)).errors]


def test_good_settings_are_those_that_the_daemon_loads(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text(OUT + "ScanHeader: X: y\nListen: 1\nListen: 2\nListen: 1\nTimeOut: 5\nTimeOut: 6\n")
    judged = judge(str(path))
    assert (judged.settings, judged.warnings) == load(str(path))
    assert judged.errors == ()
    assert {name: [place.removeprefix(str(path)) for place in places] for name, places in judged.where.items()} == {
        "out_address": [":1"],
        "header": [":2"],
        "listen": [":3", ":4"],
        "time_out": [":7"],
    }


def test_every_line_that_is_wrong_is_told(tmp_path: Path) -> None:
    errors = judged_errors(tmp_path / "conf", "one\n" + OUT + "Two: 2\nTimeOut: x\nAction: drop\n")
    assert [error.partition(" ")[0] for error in errors] == ["FILE:1:", "FILE:3:", "FILE:4:"]
    with pytest.raises(ConfigError) as raised:
        load(str(tmp_path / "conf"))
    assert str(raised.value).endswith(errors[0].removeprefix("FILE"))


def test_what_does_not_go_together_is_told_all_and_the_daemon_says_the_first(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    errors = judged_errors(path, "TLSKey: /k\nProxyProtocol: on\nTrustedClients: /s\nOutTLS: verify\nOutAddress: /h\n")
    assert [error.partition(";")[0] for error in errors] == [
        "FILE:1: TLSKey: is of no use alone",
        "FILE:4: OutTLS: a unix socket has no name to verify",
        "FILE:3: TrustedClients: /s is none of our sockets",
    ]
    with pytest.raises(ConfigError, match="TLSKey"):
        load(str(path))


def test_what_is_missing_may_be_in_a_line_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    assert judged_errors(path, "ProxyProtocol: on\n") == [
        "FILE: OutAddress: is missing; give the next hop's address, or TransparentProxy: on",
        "FILE:1: ProxyProtocol: nobody may use it; name the proxy in TrustedClients",
    ]
    assert judged_errors(path, "ProxyProtocol: on\nOutAdress: 25\n") == [
        "FILE:2: OutAdress: is no setting; did you mean OutAddress?"
    ]


def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    judged = judge(str(tmp_path / "none"))
    assert judged.settings is None
    assert judged.errors == (
        f"{tmp_path}/none: cannot be read: No such file or directory; name the settings file with -f",
    )
    assert judged.where == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300))
def test_any_file_can_be_judged_and_as_the_daemon_does(tmp_path: Path, text: str) -> None:
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
