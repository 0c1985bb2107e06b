"""What is said of good settings, by the facts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clamsmtpd.config import judge
from clamsmtpd.ctl.clamdconf import ClamdSettings
from clamsmtpd.ctl.findings import CertificateTimes, Facts, findings

OUT = "OutAddress: 127.0.0.1:10026\n"


def warned(text: str, facts: Facts, folder: Path) -> list[str]:
    path = folder / "conf"
    path.write_text(text)
    judged = judge(str(path))
    assert judged.settings is not None
    return [found.text for found in findings(judged.settings, facts)]


ROOMY = ClamdSettings(max_threads=64)

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def listening(local_socket: str, tcp_port: int | None = None) -> ClamdSettings:
    return ClamdSettings(max_threads=64, tcp_port=tcp_port, tcp_addresses=("127.0.0.1",), local_socket=local_socket)


def times(since: int, until: int) -> CertificateTimes:
    """In days from now."""
    return CertificateTimes(NOW + timedelta(days=since), NOW + timedelta(days=until), NOW)


@pytest.mark.parametrize(
    ("text", "facts", "words"),
    [
        (
            OUT,
            Facts(next_hop_fault="Connection refused"),
            "next hop 127.0.0.1:10026 cannot be used: Connection refused",
        ),
        (OUT, Facts(clamd_fault="clamd.conf: Permission denied"), "could not be read: clamd.conf: Permission denied"),
        (OUT, Facts(listening("/run/clamav/clamd.ctl")), "give ClamAddress: /run/clamav/clamd.ctl"),
        (OUT + "ClamAddress: 3311\n", Facts(listening("/run/clamd", 3310)), "is looked for at 127.0.0.1:3311"),
        (OUT, Facts(ClamdSettings(max_threads=64, tcp_port=3310, tcp_addresses=("127.0.0.1", "192.0.2.1"))), "of 192."),
        ("OutAddress: 10025\n", Facts(ROOMY), "mail of clients on this host would loop"),
        (
            "OutAddress: mx.example:10025\nListen: 192.0.2.7:10025\n",
            Facts(ROOMY, addresses={"mx.example": frozenset({"192.0.2.7"})}),
            "all mail would loop",
        ),
        ("OutAddress: 0.0.0.0:10025\n", Facts(ROOMY), "all mail would loop"),
        (OUT, Facts(certificate=times(-400, -1)), "has ended on 2026-05-31"),
        (OUT, Facts(certificate=times(1, 400)), "begins on 2026-06-02"),
        (OUT, Facts(certificate=times(-80, 6)), "ends on 2026-06-07"),
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
        (OUT + "ClamAddress: 192.0.2.1\n", Facts(listening("/run/clamd")), "plain text"),
        (OUT + "ClamAddress: scanner.example\n", Facts(ROOMY), "plain text"),
        (OUT + "Admin: 0.0.0.0:9310\n", Facts(ROOMY), "nobody is asked for a password"),
        (OUT, Facts(ROOMY, descriptors=383), "384 descriptors"),
        ("OutAddress: 127.0.0.1:10025\n", Facts(ROOMY), "loop"),
        ("OutAddress: localhost:10025\nListen: 127.0.0.1:10025\n", Facts(ROOMY), "loop"),
        ("OutAddress: 192.0.2.7:10025\n", Facts(ROOMY, own=frozenset({"192.0.2.7"})), "loop"),
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
        (OUT, Facts(listening("/run/clamav/clamd"))),
        (OUT + "ClamAddress: /x\nClamAddress: 3310\n", Facts(listening("/run/clamd", 3310))),
        (OUT + "ClamAddress: 192.0.2.7\n", Facts(listening("/run/clamd", 3310), own=frozenset({"192.0.2.7"}))),
        ("OutAddress: 127.0.0.2:10025\nListen: 127.0.0.1:10025\n", Facts(ROOMY)),
        (OUT, Facts(certificate=times(-80, 8))),
        (OUT, Facts(ClamdSettings(max_threads=64), next_hop_size=100 * 1024**2)),
        (OUT, Facts(ClamdSettings(0, 0, 0, 64), next_hop_size=0)),
        (OUT, Facts(ClamdSettings(stream_max_length=1000, max_threads=64), next_hop_size=2000)),
        (OUT, Facts(ClamdSettings(max_threads=64, tcp_port=3310, tcp_addresses=("127.0.0.1",)))),
        (OUT + "ClamAddress: 127.0.0.1\nAdmin: 9310\n", Facts(ROOMY, descriptors=384)),
        (OUT + "ClamAddress: /a\nClamAddress: /b\n", Facts(ClamdSettings(max_threads=32))),
        ("OutAddress: 192.0.2.7:10025\n", Facts(ROOMY)),
        ("OutAddress: 10026\n", Facts(ROOMY)),
        ("TransparentProxy: on\n", Facts(ROOMY)),
        ("OutAddress: 127.0.0.1:10025\nListen: 192.0.2.1:10025\n", Facts(ROOMY)),
    ],
)
def test_and_what_will_not_is_not(tmp_path: Path, text: str, facts: Facts) -> None:
    assert warned(text, facts, tmp_path) == []
