"""clamsmtpctl check, beside a next hop."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from clamsmtpd.ctl.main import cli
from tests.support.sink import Sink

pytestmark = pytest.mark.integration


def test_the_next_hop_is_asked_how_large_a_message_it_takes(tmp_path: Path) -> None:
    with Sink() as hop:
        path = tmp_path / "conf"
        path.write_text(f"OutAddress: {hop.address}\nTempDirectory: {tmp_path}\nMaxConnections: 10\n")
        conf = tmp_path / "clamd.conf"
        conf.write_text("MaxFileSize 10\n")
        done = CliRunner().invoke(cli, ["check", "--clamd-conf", str(conf), str(path)])
        assert done.exit_code == 1
        assert "MaxFileSize in" in done.output
        assert CliRunner().invoke(cli, ["check", "--offline", "--clamd-conf", str(conf), str(path)]).exit_code == 0
