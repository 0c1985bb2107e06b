"""What clamd.conf(5) says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.ctl.clamdconf import ClamdSettings, parse_clamd_conf


def test_clamd_conf_is_read_as_clamd_reads_it() -> None:
    text = "# MaxThreads 1\nMaxThreads 12\nStreamMaxLength 25M\nMaxFileSize 2g # comment\nmaxscansize 100k\n"
    found = parse_clamd_conf(text + "TCPSocket 3310\nTCPAddr 127.0.0.1\nLocalSocket /run/clamd\nMaxQueue\nExample\n")
    assert found == ClamdSettings(25 * 1024**2, 2 * 1024**3, 100 * 1024, 12, 100, 3310, ("127.0.0.1",), "/run/clamd")


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    parse_clamd_conf(text)
