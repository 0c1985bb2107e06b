"""The settings for mail servers: those of the how-tos, with the addresses of the settings file."""

from __future__ import annotations

from pathlib import Path

import pytest

from clamsmtpd.config import Settings, load
from clamsmtpd.ctl.mta_settings import MTAS, Unsuited, network_of, recognise, settings_for

HOWTO = Path(__file__).resolve().parents[3] / "docs" / "howto" / "files"

USUAL = "Listen: 127.0.0.1:10025\nOutAddress: 127.0.0.1:10026\n"


def read(folder: Path, text: str) -> Settings:
    path = folder / "conf"
    path.write_text(text)
    return load(str(path)).settings


def everything(mta: str, settings: Settings, source: str | None = None) -> str:
    return "".join(block.text for way in settings_for(mta, settings, source) for block in way.blocks)


@pytest.mark.parametrize(
    ("mta", "way", "names"),
    [
        ("postfix", 0, ["postfix-after-queue/main.cf", "postfix-after-queue/master.cf"]),
        ("postfix", 1, ["postfix-before-queue/master.cf"]),
        ("exim", 0, ["exim/interfaces.conf", "exim/router.conf", "exim/transport.conf"]),
        ("opensmtpd", 0, ["opensmtpd/smtpd.conf"]),
    ],
)
def test_they_are_those_of_the_how_to(tmp_path: Path, mta: str, way: int, names: list[str]) -> None:
    settings = read(tmp_path, (HOWTO / names[0]).parent.joinpath("clamsmtpd.conf").read_text())
    blocks = settings_for(mta, settings)[way].blocks
    assert [block.text for block in blocks] == [(HOWTO / name).read_text() for name in names]


@pytest.mark.parametrize("mta", MTAS)
def test_a_port_alone_is_at_this_host(tmp_path: Path, mta: str) -> None:
    settings = read(tmp_path, "OutAddress: 10026\n")
    assert everything(mta, settings) == everything(mta, read(tmp_path, USUAL))


def test_addresses_of_ipv6_are_in_brackets(tmp_path: Path) -> None:
    settings = read(tmp_path, "Listen: [::1]:10025\nOutAddress: [::1]:10026\n")
    postfix = everything("postfix", settings)
    assert "content_filter = scan:[::1]:10025\n" in postfix
    assert "\n[::1]:10026 inet n " in postfix
    assert "smtpd_proxy_filter=[::1]:10025\n" in postfix
    assert "smtpd_authorized_xforward_hosts=[::1]/128\n" in postfix
    assert 'route_list = * "<+ [::1]:10025"\n' in everything("exim", settings)
    opensmtpd = everything("opensmtpd", settings)
    assert "relay host smtp://[::1]:10025\n" in opensmtpd
    assert "listen on ::1 port 10026 tag SCANNED\n" in opensmtpd


def test_lmtp_is_spoken_where_the_filter_speaks_nothing_else(tmp_path: Path) -> None:
    settings = read(tmp_path, "Listen: lmtp:127.0.0.1:10025\nOutAddress: 127.0.0.1:10026\n")
    (way,) = settings_for("postfix", settings)
    assert "16      lmtp\n  -o lmtp_send_xforward_command=yes\n" in way.blocks[1].text
    assert "driver = smtp\n  protocol = lmtp\n  port = 10025\n" in everything("exim", settings)
    assert "relay host lmtp://127.0.0.1:10025\n" in everything("opensmtpd", settings)
    both = read(tmp_path, "Listen: lmtp:127.0.0.1:10024\n" + USUAL)
    assert everything("postfix", both) == everything("postfix", read(tmp_path, USUAL))


def test_unix_sockets_are_used_by_those_that_can(tmp_path: Path) -> None:
    smtp = read(tmp_path, "Listen: /run/filter\nOutAddress: 127.0.0.1:10026\n")
    (way,) = settings_for("postfix", smtp)
    assert "smtpd_proxy_filter=unix:/run/filter\n" in way.blocks[0].text
    lmtp = read(tmp_path, "Listen: lmtp:/run/filter\nOutAddress: 127.0.0.1:10026\n")
    (way,) = settings_for("postfix", lmtp)
    assert way.blocks[0].text.startswith("content_filter = scan:unix:/run/filter\n")
    assert "driver = lmtp\n  socket = /run/filter\n  user = Debian-exim\n" in everything("exim", lmtp)
    assert "route_list = *\n" in everything("exim", lmtp)


def test_xclient_is_allowed_where_it_is_on_and_for_whom_it_comes_from(tmp_path: Path) -> None:
    settings = read(tmp_path, USUAL + "XClient: on\n")
    assert everything("postfix", settings).count("-o smtpd_authorized_xclient_hosts=127.0.0.0/8\n") == 2
    assert "smtpd_authorized_xclient_hosts=192.0.2.7/32\n" in everything("postfix", settings, "192.0.2.7")
    assert "xclient" not in everything("postfix", read(tmp_path, USUAL))


@pytest.mark.parametrize(
    ("mta", "text", "why"),
    [
        ("postfix", "TransparentProxy: on\n", "TransparentProxy"),
        ("postfix", "OutAddress: lmtp:127.0.0.1:24\n", "no way back"),
        ("exim", "OutAddress: /run/hop\n", "no way back"),
        ("exim", "Listen: /run/filter\nOutAddress: 127.0.0.1:10026\n", "by LMTP alone"),
        (
            "opensmtpd",
            "Listen: lmtp:/run/filter\nOutAddress: 127.0.0.1:10026\n",
            "give Listen: 127.0.0.1:10025 as well",
        ),
        ("postfix", USUAL + "ProxyProtocol: on\nTrustedClients: 127.0.0.1\n", "mail servers do not speak it"),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path: Path, mta: str, text: str, why: str) -> None:
    with pytest.raises(Unsuited, match=why):
        settings_for(mta, read(tmp_path, text))


@pytest.mark.parametrize(
    ("listen", "trusted"), [("192.0.2.2:10025", "192.0.2.0/24"), ("/run/proxied", "/run/proxied 192.0.2.0/24")]
)
@pytest.mark.parametrize("own", ["127.0.0.1:10025", "localhost:10025"])
def test_a_proxys_own_socket_is_left_to_it(tmp_path: Path, listen: str, trusted: str, own: str) -> None:
    settings = read(
        tmp_path,
        f"Listen: {listen}\nListen: {own}\nOutAddress: 10026\nProxyProtocol: on\nTrustedClients: {trusted}\n",
    )
    host, _, port = own.partition(":")
    assert f"scan:[{host}]:{port}" in everything("postfix", settings)


def test_all_addresses_are_this_hosts_too(tmp_path: Path) -> None:
    settings = read(tmp_path, "Listen: [::]:10025\nOutAddress: 127.0.0.1:10026\n")
    assert "scan:[::1]:10025" in everything("postfix", settings)


@pytest.mark.parametrize(
    ("banner", "mta"),
    [
        ("mx.example.org ESMTP Postfix (Debian/GNU)", "postfix"),
        ("mx.example.org ESMTP Exim 4.96 Wed, 25 Nov 2026 08:00:00 +0000", "exim"),
        ("mx.example.org ESMTP OpenSMTPD", "opensmtpd"),
        ("postfix.example.org ESMTP ready", None),
        ("", None),
    ],
)
def test_a_mail_server_is_known_by_its_greeting(banner: str, mta: str | None) -> None:
    assert recognise(banner) == mta


@pytest.mark.parametrize(
    ("address", "network"),
    [
        (None, "127.0.0.0/8"),
        ("127.0.0.1", "127.0.0.0/8"),
        ("localhost", "127.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("2001:DB8::1", "[2001:db8::1]/128"),
    ],
)
def test_networks_are_written_as_postfix_takes_them(address: str | None, network: str) -> None:
    assert network_of(address) == network
