"""The settings file."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamsmtpd.config import SETTINGS, ConfigError, Settings, load
from clamsmtpd.values import (
    Action,
    ActionFor,
    Keep,
    Listen,
    LogFormat,
    NextHop,
    OutTls,
    TcpAddress,
    TrustedClients,
    UnixAddress,
    Unjudged,
)

OUT = "OutAddress: 127.0.0.1:10026\n"


def read(folder: Path, text: str | bytes, *overrides: tuple[str, str, str]) -> Settings:
    return load(str(write(folder, text)), overrides).settings


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "conf"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def error(folder: Path, text: str | bytes, *overrides: tuple[str, str, str]) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as raised:
        load(str(path), overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE")


def test_the_defaults_are_those_of_old(tmp_path: Path) -> None:
    assert read(tmp_path, OUT) == Settings(
        action=Action.DROP,
        actions_for=(),
        admin=None,
        clam_addresses=(UnixAddress("/var/run/clamav/clamd"),),
        header="X-Virus-Scanned: ClamAV using ClamSMTP",
        keep_alives=None,
        listen=(Listen(TcpAddress(None, 10025)),),
        log_format=LogFormat.TEXT,
        max_connections=64,
        out_address=NextHop(TcpAddress("127.0.0.1", 10026)),
        out_tls=OutTls.OFF,
        oversize=Unjudged.DEFER,
        pid_file=None,
        proxy_protocol=False,
        quarantine=False,
        quarantine_keep=None,
        scan_failure=Unjudged.DEFER,
        temp_directory="/tmp",
        time_out=180,
        tls_certificate=None,
        tls_key=None,
        transparent_proxy=False,
        trusted_clients=TrustedClients(),
        user=None,
        virus_action=None,
        workers=None,
        xclient=False,
        debug_files=False,
    )


@pytest.mark.parametrize(
    ("line", "attribute", "value"),
    [
        ("Action: BOUNCE", "action", Action.BOUNCE),
        ("action:pass", "action", Action.PASS),
        ("  ACTION \t:\t drop  ", "action", Action.DROP),
        ("ClamAddress: 3310", "clam_addresses", (TcpAddress("127.0.0.1", 3310),)),
        ("ClamAddress: 192.0.2.1", "clam_addresses", (TcpAddress("192.0.2.1", 3310),)),
        ("ClamAddress: /run/clamd.ctl", "clam_addresses", (UnixAddress("/run/clamd.ctl"),)),
        (
            "ActionFor: *.UNOFFICIAL bounce\nActionFor:  PUA.*\tPASS",
            "actions_for",
            (ActionFor("*.UNOFFICIAL", Action.BOUNCE), ActionFor("PUA.*", Action.PASS)),
        ),
        (
            "ClamAddress: 3310\nClamAddress: /run/clamd.ctl",
            "clam_addresses",
            (TcpAddress("127.0.0.1", 3310), UnixAddress("/run/clamd.ctl")),
        ),
        ("ScanFailure: Pass", "scan_failure", Unjudged.PASS),
        ("Oversize: bounce", "oversize", Unjudged.BOUNCE),
        ("LogFormat: JSON", "log_format", LogFormat.JSON),
        ("Admin: 9999", "admin", Listen(TcpAddress("127.0.0.1", 9999))),
        ("Admin: 192.0.2.1", "admin", Listen(TcpAddress("192.0.2.1", 9310))),
        ("Admin: /run/admin", "admin", Listen(UnixAddress("/run/admin"), mode=0o600)),
        ("Admin: /run/admin mode=0660", "admin", Listen(UnixAddress("/run/admin"), mode=0o660)),
        ("Admin:", "admin", None),
        ("QuarantineKeep: 30d", "quarantine_keep", Keep(30 * 86400)),
        ("QuarantineKeep: 2G 12h", "quarantine_keep", Keep(12 * 3600, 2 * 1024**3)),
        ("QuarantineKeep: 500mb", "quarantine_keep", Keep(None, 500 * 1024**2)),
        ("KeepAlives: Automatic", "keep_alives", None),
        ("Header:", "header", ""),
        ("Header: X-Checked: by %i on %d \\r\\n\\tat %l", "header", "X-Checked: by %i on %d \\r\\n\\tat %l"),
        ("Header: Received: from %i", "header", "Received: from %i"),
        ("KeepAlives: 30", "keep_alives", 30),
        ("Workers: 3", "workers", 3),
        ("Workers: Automatic", "workers", None),
        ("Listen: 127.0.0.1", "listen", (Listen(TcpAddress("127.0.0.1", 10025)),)),
        ("Listen: [::1]:26", "listen", (Listen(TcpAddress("::1", 26)),)),
        ("Listen: lmtp:24", "listen", (Listen(TcpAddress(None, 24), lmtp=True),)),
        ("Listen: LMTP: /run/in", "listen", (Listen(UnixAddress("/run/in"), lmtp=True),)),
        (
            "Listen: /run/a b mode=0660 Owner=postfix:mail",
            "listen",
            (Listen(UnixAddress("/run/a b"), owner="postfix", group="mail", mode=0o660),),
        ),
        ("Listen: /run/in owner=106", "listen", (Listen(UnixAddress("/run/in"), owner="106"),)),
        ("Listen: /run/in mode=600", "listen", (Listen(UnixAddress("/run/in"), mode=0o600),)),
        ("Listen: /run/in mode=0", "listen", (Listen(UnixAddress("/run/in"), mode=0),)),
        ("Listen: /run/owner=me/in", "listen", (Listen(UnixAddress("/run/owner=me/in")),)),
        ("MaxConnections: 5000", "max_connections", 5000),
        ("OutAddress: mx.example.org", "out_address", NextHop(TcpAddress("mx.example.org", 25))),
        ("OutAddress: 10026", "out_address", NextHop(TcpAddress(None, 10026))),
        ("OutAddress: /run/mx", "out_address", NextHop(UnixAddress("/run/mx"))),
        ("OutAddress: lmtp:mx.example.org", "out_address", NextHop(TcpAddress("mx.example.org", 24), lmtp=True)),
        ("OutAddress: Lmtp:/run/mx", "out_address", NextHop(UnixAddress("/run/mx"), lmtp=True)),
        ("OutAddress: lmtp:26", "out_address", NextHop(TcpAddress(None, 26), lmtp=True)),
        ("OutTLS: Verify", "out_tls", OutTls.VERIFY),
        ("TLSCertificate: /etc/cert.pem", "tls_certificate", "/etc/cert.pem"),
        ("TrustedClients:", "trusted_clients", TrustedClients()),
        (
            "TrustedClients: 192.0.2.1 10.0.0.0/8,[2001:db8::]/32 , [::1]",
            "trusted_clients",
            TrustedClients(
                (ip_network("192.0.2.1"), ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"), ip_network("::1"))
            ),
        ),
        (
            "TrustedClients: ::ffff:192.0.2.0/120 ::/0",
            "trusted_clients",
            TrustedClients((ip_network("192.0.2.0/24"), ip_network("::/0"))),
        ),
        ("PidFile: /run/clamsmtpd.pid", "pid_file", "/run/clamsmtpd.pid"),
        ("Quarantine: yes", "quarantine", True),
        ("Quarantine: T", "quarantine", True),
        ("Quarantine: 1", "quarantine", True),
        ("Quarantine: FALSE", "quarantine", False),
        ("TempDirectory: /var/spool/clamsmtp", "temp_directory", "/var/spool/clamsmtp"),
        ("TimeOut: 20", "time_out", 20),
        ("User: clamsmtp", "user", "clamsmtp"),
        ("User: 104", "user", "104"),
        ('VirusAction: /bin/x "$VIRUS": # y', "virus_action", '/bin/x "$VIRUS": # y'),
        ("VirusAction:", "virus_action", None),
        ("XClient: on", "xclient", True),
        ("DebugFiles: on", "debug_files", True),
        ("Bounce: on", "action", Action.BOUNCE),
        ("bounce: off", "action", Action.DROP),
        ("ScanHeader: X-Old: y", "header", "X-Old: y"),
        ("ScanHeader:", "header", ""),
        ("Header: \\tX-A\\t: b\\r\\n\\r\\n", "header", "\\tX-A\\t: b\\r\\n\\r\\n"),
        ("Header: X-A: %i \\n ", "header", "X-A: %i \\n"),
        ("Header: X: " + "b" * 995, "header", "X: " + "b" * 995),
        ("MaxConnections: 0064", "max_connections", 64),
        ("KeepAlives: 2147483647", "keep_alives", 2147483647),
        ("PidFile:", "pid_file", None),
        ("PidFile: /run/a/../b", "pid_file", "/run/a/../b"),
        ("User: DOMAIN\\mail", "user", "DOMAIN\\mail"),
        ("User: mail@example.org", "user", "mail@example.org"),
    ],
)  # fmt: skip
def test_a_line_and_its_value(tmp_path: Path, line: str, attribute: str, value: object) -> None:
    assert getattr(read(tmp_path, f"{OUT}{line}\n"), attribute) == value


def test_every_setting_is_in_the_table_once() -> None:
    assert sorted(setting.attribute for setting in SETTINGS) == sorted({*Settings.__slots__} - {"listen_given"})
    assert all(len(setting.help) > 40 for setting in SETTINGS)


def test_what_editors_leave_in_a_file(tmp_path: Path) -> None:
    text = "\ufeff# comment: x\r\n\r\n  # another\r\nOutAddress: 25\r\n\t\r\nQuarantine: on"
    assert read(tmp_path, text).quarantine


def test_a_path_in_the_encoding_of_another_time(tmp_path: Path) -> None:
    assert read(tmp_path, b"OutAddress: 25\nVirusAction: /bin/caf\xe9\n").virus_action == "/bin/caf\udce9"


def test_a_relative_path_is_from_where_the_daemon_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = read(tmp_path, f"{OUT}TempDirectory: spool\nPidFile: run/pid\n")
    assert (found.temp_directory, found.pid_file) == (str(tmp_path / "spool"), str(tmp_path / "run/pid"))


def test_a_relative_path_is_from_a_folder_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, f"{OUT}TempDirectory: spool\nPidFile:\nVirusAction: relative stays\n")
    monkeypatch.chdir("/")
    found = load("conf", folder=str(tmp_path)).settings
    assert (found.temp_directory, found.pid_file) == (str(tmp_path / "spool"), None)
    assert found.virus_action == "relative stays"


def test_whether_listen_was_given_is_known(tmp_path: Path) -> None:
    assert not read(tmp_path, OUT).listen_given
    assert read(tmp_path, f"{OUT}Listen: 10025\n").listen_given
    assert read(tmp_path, OUT, ("-l", "Listen", "10025")).listen_given


def test_a_relative_path_without_a_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert error(tmp_path, f"{OUT}PidFile: pid\n") == (
        'FILE:2: PidFile: "pid" is relative to a working directory that is gone; give a full path'
    )
    assert read(tmp_path, f"{OUT}PidFile: /pid\n").pid_file == "/pid"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ActionFor: PUA.*",
            'FILE:2: ActionFor: "PUA.*" is no pattern and action; write them as Heuristics.Encrypted.* pass',
        ),
        ("ActionFor: PUA.* keep", 'FILE:2: ActionFor: "keep" is not known; give drop, bounce or pass'),
        ("ScanFailure: bounce", 'FILE:2: ScanFailure: "bounce" is not known; give defer or pass'),
        (
            "QuarantineKeep: 30",
            'FILE:2: QuarantineKeep: "30" is no age and no size; give such as 30d, 12h, 500M or 2G',
        ),
        (
            "QuarantineKeep: 0d",
            'FILE:2: QuarantineKeep: "0d" is no age and no size; give such as 30d, 12h, 500M or 2G',
        ),
        (
            "QuarantineKeep: 1d 2w",
            'FILE:2: QuarantineKeep: "2w" is a second age; give one age, one size, or both',
        ),
        (
            "QuarantineKeep: 1G 2g",
            'FILE:2: QuarantineKeep: "2g" is a second size; give one age, one size, or both',
        ),
        ("Oversize: drop", 'FILE:2: Oversize: "drop" is not known; give defer, pass or bounce'),
        ("Action: dorp", 'FILE:2: Action: "dorp" is not known; give drop, bounce or pass'),
        ("Quarantine: maybe", 'FILE:2: Quarantine: "maybe" is not known; give on or off'),
        ("Bounce: maybe", 'FILE:2: Bounce: "maybe" is not known; give on or off'),
        ("MaxConnections: 0", 'FILE:2: MaxConnections: "0" is out of range; give a whole number from 1 to 1000000'),
        ("MaxConnections: 1e3", 'FILE:2: MaxConnections: "1e3" is no whole number; give one from 1 to 1000000'),
        ("Workers: 0", 'FILE:2: Workers: "0" is out of range; give a whole number from 1 to 256, or automatic'),
        ("Workers: all", 'FILE:2: Workers: "all" is no whole number; give one from 1 to 256, or automatic'),
        ("TimeOut: -1", 'FILE:2: TimeOut: "-1" is no whole number; give one from 1 to 2147483647'),
        ("TimeOut: 0", 'FILE:2: TimeOut: "0" is out of range; give a whole number from 1 to 2147483647'),
        (
            "TimeOut: 2147483648",
            'FILE:2: TimeOut: "2147483648" is out of range; give a whole number from 1 to 2147483647',
        ),
        (
            "KeepAlives: 1.5",
            'FILE:2: KeepAlives: "1.5" is no whole number; give one from 0 to 2147483647, or automatic',
        ),
        ("TimeOut:", "FILE:2: TimeOut: a value is missing; give one, or leave the line out"),
        ("TempDirectory:", "FILE:2: TempDirectory: a value is missing; give one, or leave the line out"),
        ("User: -1", 'FILE:2: User: "-1" is no user; give a user name or number'),
        ("Listen: nowhere:99999", 'FILE:2: Listen: "99999" is no port; give a number from 1 to 65535'),
        ("User: a b", 'FILE:2: User: "a b" is no user; give a user name or number'),
        *(
            (
                f"Header: {template}",
                f'FILE:2: Header: "{template}" is no header field; write it as Name: text, with no % in the name',
            )
            for template in ("no field", ": x", "%i: x", "X-%d: x", "X-A\\r\\n\\t: x", "\\r\\n")
        ),
        ("Header: X: " + "b" * 999, "FILE:2: Header: a line of it has more than 998 octets; fold it with \\r\\n\\t"),
        ("Header: X: a\\r\\nb", 'FILE:2: Header: the folded line "b" must start with a blank or \\t'),
        ("Header: X: a\x01", "FILE:2: Header: it holds a control character; write \\r, \\n or \\t"),
        ("VirusAction: a\0b", "FILE:2: VirusAction: it holds a NUL octet; take it out"),
        ("Wh\x1b: \0", "FILE:2: Wh?: it holds a NUL octet; take it out"),
        (": on", 'FILE:2: ": on" is no setting; write Name: value'),
        ("just words", 'FILE:2: "just words" is no setting; write Name: value'),
        ("Quarantin: on", "FILE:2: Quarantin: is no setting; did you mean Quarantine?"),
        ("Whatever: on", "FILE:2: Whatever: is no setting; see clamsmtpd.conf(5) for those there are"),
        ("Wh\x1b[31m: on", "FILE:2: Wh?[31m: is no setting; see clamsmtpd.conf(5) for those there are"),
        (
            "Listen: 25 owner=mail",
            "FILE:2: Listen: owner= and mode= are for unix sockets; give a full path, or leave them out",
        ),
        *(
            (
                f"Listen: /in mode={mode}",
                f'FILE:2: Listen: "{mode}" is no mode; give octal digits from 0 to 0777, such as 0660',
            )
            for mode in ("0999", "1777", "00660", "rw", "")
        ),
        ("Listen: /in onwer=mail", 'FILE:2: Listen: "onwer=" is not known; give owner= or mode='),
        ("Listen: /in owner=a:b:c", 'FILE:2: Listen: "a:b:c" is no owner; give USER or USER:GROUP'),
        ("Listen: /in mode=600 mode=666", 'FILE:2: Listen: "mode=" is given twice; give it once'),
        ("OutTLS: on", 'FILE:2: OutTLS: "on" is not known; give off, may, encrypt or verify'),
        ("TLSKey: /key", "FILE:2: TLSKey: is of no use alone; give TLSCertificate too"),
        (
            "TrustedClients: mx.example.org",
            (
                'FILE:2: TrustedClients: "mx.example.org" is no network; give IP addresses, networks such as '
                "192.0.2.0/24, and paths of unix sockets"
            ),
        ),
        (
            "TrustedClients: 192.0.2.1/24",
            'FILE:2: TrustedClients: "192.0.2.1/24" has bits behind its prefix; give 192.0.2.0/24',
        ),
        (
            "TrustedClients: ::ffff:192.0.2.1/120",
            'FILE:2: TrustedClients: "::ffff:192.0.2.1/120" has bits behind its prefix; give 192.0.2.0/24',
        ),
        *(
            (
                f"TrustedClients: {word}",
                (
                    f'FILE:2: TrustedClients: "{word}" is no network; give IP addresses, networks such as '
                    "192.0.2.0/24, and paths of unix sockets"
                ),
            )
            for word in ("[::1", "::1]", "fe80::1%eth0", "192.0.2.0/33")
        ),
        (
            "TrustedClients: /in",
            "FILE:2: TrustedClients: /in is none of our sockets; give a path that is in Listen",
        ),
        ("ProxyProtocol: on", "FILE:2: ProxyProtocol: nobody may use it; name the proxy in TrustedClients"),
        ("TransparentProxy: on", "FILE:1: OutAddress: does not go with TransparentProxy: on; leave one of them out"),
    ],
)  # fmt: skip
def test_a_bad_line_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    assert error(tmp_path, f"{OUT}{text}\n") == message


def test_a_warning_is_one_printable_line(tmp_path: Path) -> None:
    path = write(tmp_path, f"{OUT}ScanHeader: X-A: a\\r\\n\\tb \x9b31m\n")
    assert load(str(path)).warnings == (f"{path}:2: ScanHeader is an old name; write Header: X-A: a\\r\\n\\tb ?31m",)


def test_no_next_hop(tmp_path: Path) -> None:
    assert error(tmp_path, "# nothing\n") == (
        "FILE: OutAddress: is missing; give the next hop's address, or TransparentProxy: on"
    )
    assert read(tmp_path, "TransparentProxy: on\n").out_address is None


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read: .*; name the settings file with -f"):
            load(str(path))


def test_a_file_that_may_be_missing(tmp_path: Path) -> None:
    path = str(tmp_path / "missing")
    found = load(path, [("argument", "OutAddress", "26")], required=False)
    assert found.settings.out_address == NextHop(TcpAddress(None, 26))
    assert found.warnings == (f"{path}: is missing; only the flags count",)


def test_flags_beat_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, f"{OUT}PidFile: /a\n", ("-p", "PidFile", "/b"), ("-m", "MaxConnections", "5"))
    assert (found.pid_file, found.max_connections) == ("/b", 5)


def test_several_places_to_listen(tmp_path: Path) -> None:
    text = f"{OUT}Listen: 25\nListen: lmtp:/run/in\nListen: 25\nListen: [::1]:26\n"
    path = write(tmp_path, text)
    found = load(str(path))
    assert [str(place) for place in found.settings.listen] == ["25", "lmtp:/run/in", "[::1]:26"]
    assert found.warnings == (f"{path}:4: Listen: 25 is given again; one of them is enough",)
    assert read(tmp_path, text, ("-l", "Listen", "27")).listen == (Listen(TcpAddress(None, 27)),)


def test_sockets_of_ours_may_be_trusted(tmp_path: Path) -> None:
    found = read(tmp_path, f"{OUT}Listen: /run/in\nTrustedClients: /run/in 192.0.2.1\nProxyProtocol: on\n")
    assert found.trusted_clients.sockets == {"/run/in"}
    assert found.proxy_protocol


def test_what_does_not_go_together(tmp_path: Path) -> None:
    assert error(tmp_path, "OutAddress: /run/mx\nOutTLS: verify\n") == (
        "FILE:2: OutTLS: a unix socket has no name to verify; give off, or a host in OutAddress"
    )
    assert error(tmp_path, "TransparentProxy: on\nTrustedClients: ::1\nProxyProtocol: on\n") == (
        "FILE:3: ProxyProtocol: does not go with TransparentProxy: on; leave one of them out"
    )
    assert read(tmp_path, "OutTLS: verify\nTransparentProxy: on\n").out_tls is OutTls.VERIFY


def test_a_bad_flag_is_named(tmp_path: Path) -> None:
    assert error(tmp_path, OUT, ("-t", "TimeOut", "soon")).startswith('-t: TimeOut: "soon" is no whole number')


def test_warnings_name_the_place_and_the_new_name(tmp_path: Path) -> None:
    path = write(tmp_path, f"{OUT}Bounce: on\nTimeOut: 5\nTimeOut: 6\nHeader: X: %q %i %%\n")
    found = load(str(path), [("-t", "TimeOut", "7")])
    assert found.settings.time_out == 7
    assert [warning.replace(str(path), "FILE") for warning in found.warnings] == [
        "FILE:2: Bounce is an old name; write Action: bounce",
        "FILE:4: TimeOut is given again; this one counts, not FILE:3",
        "FILE:5: Header: %q is not known and stands for nothing; there are %i, %l, %d and %%",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_file_gives_settings_or_one_line(tmp_path: Path, text: bytes) -> None:
    path = write(tmp_path, b"OutAddress: 25\n" + text)
    try:
        assert isinstance(load(str(path)).settings, Settings)
    except ConfigError as found:
        lines = str(found).splitlines()
    else:
        lines = ["fine"]
    assert len(lines) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([setting.name for setting in SETTINGS]), st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_value_gives_settings_or_one_line(tmp_path: Path, name: str, value: str) -> None:
    path = write(tmp_path, f"OutAddress: 25\n{name}: {value}\n")
    try:
        assert isinstance(load(str(path)).settings, Settings)
    except ConfigError as found:
        lines = str(found).splitlines()
    else:
        lines = ["fine"]
    assert len(lines) == 1


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError) as raised:
        load(str(path))
    assert str(raised.value) == f"{path}: cannot be read: it is no plain file; name the settings file with -f"


def test_a_file_that_everybody_may_write_to_is_warned_of(tmp_path: Path) -> None:
    path = write(tmp_path, OUT)
    path.chmod(0o666)
    assert load(str(path)).warnings == (f"{path}: everybody may write to it; take that right away (chmod o-w)",)
