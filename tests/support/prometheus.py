"""A Prometheus of our own, unpacked beside the system, and its promtool."""

from __future__ import annotations

import http.client
import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from tests.support.process import Program, free_port, wait_until
from tests.support.unpacked import UNPACKED

__all__ = ["Prometheus", "promtool"]

_PROGRAMS = UNPACKED / "usr" / "bin"

_CONFIGURATION = """
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: [{rules}]
scrape_configs:
  - job_name: clamsmtpd
    static_configs: [{{targets: ["127.0.0.1:{target}"]}}]
"""


def promtool(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run promtool, whose standard input is ``given``; its output is in ``stdout``, errors and all."""
    return subprocess.run(
        [_PROGRAMS / "promtool", *arguments],
        input=given.decode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )


class Prometheus:
    """A running Prometheus that asks the port ``target``, as job clamsmtpd, once a second, and minds ``rules``."""

    def __init__(self, folder: Path, target: int, rules: Path) -> None:
        self.port = free_port()
        self.configuration = folder / "prometheus.yml"
        self.configuration.write_text(_CONFIGURATION.format(target=target, rules=rules))
        self._program = Program(
            [
                str(_PROGRAMS / "prometheus"),
                f"--config.file={self.configuration}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            output=folder / "prometheus.log",
        )
        try:
            self._program.wait_until(lambda: self._get("/-/ready")[0] == http.HTTPStatus.OK, "Prometheus to be ready")
        except BaseException:
            self.stop()
            raise

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ConnectionRefusedError:
            return 0, b""
        finally:
            connection.close()

    def ask(self, path: str, **query: str) -> Any:
        """Return the ``data`` of an answer of its HTTP API."""
        _, text = self._get(f"/api/v1/{path}?{urlencode(query)}")
        told = json.loads(text)
        assert told["status"] == "success", (query, told)
        return told["data"]

    def vector(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression is now: a list of samples, each with ``metric`` and ``value``."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def wait_for(self, expression: str, value: float, *, seconds: float = 20) -> None:
        """Return as soon as an expression has one sample of this value."""

        def holds() -> bool:
            return [float(sample["value"][1]) for sample in self.vector(expression)] == [value]

        wait_until(holds, f"{expression} to be {value:g}", seconds=seconds)

    def log(self) -> str:
        """Return all that it has written."""
        return self._program.text()

    def stop(self) -> None:
        """End it."""
        self._program.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
