"""A Prometheus of our own, unpacked beside the system: it scrapes what it is told to, each second."""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clamsmtpd.values import TcpAddress
from tests.support.process import Program, accepts, free_port
from tests.support.unpacked import UNPACKED

__all__ = ["PROMTOOL", "Prometheus"]

_PROGRAM = UNPACKED / "usr" / "bin" / "prometheus"
PROMTOOL = UNPACKED / "usr" / "bin" / "promtool"

_CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: clamsmtpd
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """A running Prometheus that scrapes ``target`` and evaluates the alerts in the file ``rules``."""

    def __init__(self, target: TcpAddress, rules: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-prometheus-"))
        self.address = TcpAddress("127.0.0.1", free_port())
        self.configuration = self.folder / "prometheus.yml"
        self.configuration.write_text(_CONFIGURATION.format(rules=rules, target=target))
        self._program = Program(
            [
                str(_PROGRAM),
                f"--config.file={self.configuration}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                f"--web.listen-address={self.address}",
            ],
            output=self.folder / "log",
        )
        try:
            self._program.wait_until(lambda: accepts(("127.0.0.1", self.address.port)), "Prometheus to listen")
        except BaseException:
            self.stop()
            raise

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its HTTP API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=10) as answer:
            told = json.load(answer)
        assert told["status"] == "success"
        return told["data"]

    def value(self, expression: str) -> float | None:
        """Return the value of an expression that has one now; None if it has none."""
        found = self.ask("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None

    def stop(self) -> None:
        """End it and remove its folder."""
        try:
            self._program.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
