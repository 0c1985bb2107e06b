"""The daemon in a real Prometheus, with the alerts and the dashboard that we offer."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clamsmtpd.admin.exposition import EXPOSED
from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.process import ProgramError, free_port, wait_until
from tests.support.prometheus import Prometheus, promtool
from tests.support.sink import Sink

pytestmark = pytest.mark.integration

PACKAGING = Path(__file__).parents[2] / "packaging"
ALERTS = PACKAGING / "prometheus" / "alerts.yml"
DASHBOARD = PACKAGING / "grafana" / "clamsmtpd.json"

#: A metric in an expression, with its labels as far as they are asked for.
SELECTOR = re.compile(r"\b(?:clamsmtpd_\w+|up)\b(?:\{[^}]*\})?")


#: Known by its name alone: see missing().
SIGNATURES = "clamsmtpd_scanner_signatures_timestamp_seconds"


class Watched:
    """A daemon of two workers, and a Prometheus that asks it."""

    def __init__(self, folder: Path, clamd: Clamd, hop: Sink) -> None:
        self.admin = free_port()
        self.daemon = Daemon(
            f"OutAddress: {hop.address}",
            f"ClamAddress: {clamd.unix}",
            f"Admin: 127.0.0.1:{self.admin}",
            "Workers: 2",
            level=3,
        )
        try:
            self.prometheus = Prometheus(folder, self.admin, ALERTS)
        except BaseException:
            self.daemon.stop()
            raise

    def send(self, text: bytes) -> None:
        with smtplib.SMTP(self.daemon.host, self.daemon.port, timeout=30) as client:
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n" + text + b"\r\n")

    def stop(self) -> None:
        try:
            self.prometheus.stop()
        finally:
            self.daemon.stop()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with Clamd() as clamd, Sink() as hop:
        running = Watched(tmp_path_factory.mktemp("prometheus"), clamd, hop)
        try:
            yield running
        finally:
            running.stop()


def dashboard_expressions() -> list[str]:
    """Return the dashboard's expressions, with its variables as they are when it is opened."""
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
    expressions = [item["expr"] for item in [*targets, *dashboard["annotations"]["list"]]]
    values = {"$job": ".*", "$instance": ".*", "$__rate_interval": "1m"}
    for variable, value in values.items():
        expressions = [expression.replace(variable, value) for expression in expressions]
    assert not [expression for expression in expressions if "$" in expression]
    return expressions


def rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]


def missing(prometheus: Prometheus, expressions: list[str]) -> set[str]:
    """Return what the expressions ask for and the daemon does not tell, metrics and values of labels."""
    selectors = {selector for expression in expressions for selector in SELECTOR.findall(expression)}
    # The private clamd's few signatures have no date.
    named = {selector for selector in selectors if selector.partition("{")[0] == SIGNATURES}
    return {selector for selector in selectors - named if not prometheus.vector(selector)}


def all_told(prometheus: Prometheus, expressions: list[str]) -> None:
    with contextlib.suppress(ProgramError):
        wait_until(lambda: not missing(prometheus, expressions), "each number that is asked for")
    assert missing(prometheus, expressions) == set()


def test_prometheus_counts_what_was_sent(watched: Watched) -> None:
    watched.prometheus.wait_for('up{job="clamsmtpd"}', 1)
    watched.prometheus.wait_for("sum(clamsmtpd_messages_total)", 0)
    for _ in range(5):
        watched.send(b"At noon?")
    watched.send(EICAR)
    watched.prometheus.wait_for('clamsmtpd_messages_total{verdict="clean", outcome="delivered"}', 5)
    watched.prometheus.wait_for('clamsmtpd_messages_total{verdict="infected", outcome="dropped"}', 1)
    watched.prometheus.wait_for("sum(clamsmtpd_messages_total)", 6)
    watched.prometheus.wait_for("clamsmtpd_scan_seconds_count", 6)
    watched.prometheus.wait_for("count(clamsmtpd_worker_memory_bytes > 1e6)", 2)
    watched.prometheus.wait_for("clamsmtpd_scanner_up", 1)


def test_prometheus_loads_the_alerts_and_finds_each_number_that_they_ask_for(watched: Watched) -> None:
    prometheus = watched.prometheus
    wait_until(lambda: all(rule["health"] != "unknown" for rule in rules(prometheus)), "each rule to be evaluated")
    loaded = rules(prometheus)
    assert len(loaded) == ALERTS.read_text().count("- alert: ") > 0
    assert [(rule["name"], rule.get("lastError")) for rule in loaded if rule["health"] != "ok"] == []
    all_told(prometheus, [rule["query"] for rule in loaded])
    assert not [name for name in ("level=error", "level=warn") if name in prometheus.log()]


@pytest.mark.parametrize("alert", re.findall(r"- alert: (\w+)", ALERTS.read_text()))
def test_each_alert_says_what_to_do(watched: Watched, alert: str) -> None:
    (rule,) = [rule for rule in rules(watched.prometheus) if rule["name"] == alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
    assert re.search(r"`(clamsmtpctl|journalctl|systemctl) ", rule["annotations"]["description"])


def test_the_dashboard_asks_for_nothing_that_is_not_told(watched: Watched) -> None:
    expressions = dashboard_expressions()
    assert len(expressions) > 20
    for expression in expressions:
        watched.prometheus.vector(expression)
    # Phases are those of connections that are open.
    with smtplib.SMTP(watched.daemon.host, watched.daemon.port, timeout=30):
        all_told(watched.prometheus, expressions)


def test_the_dashboard_shows_all_that_is_told() -> None:
    text = " ".join(dashboard_expressions())
    suffixes = {"counter": "_total", "gauge": "", "histogram": "_bucket"}
    names = [exposed.name + suffixes[exposed.kind] for exposed in EXPOSED]
    assert SIGNATURES in names
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def test_the_dashboard_asks_for_its_data_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert [item["name"] for item in dashboard["templating"]["list"]] == ["datasource", "job", "instance"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_promtool_has_nothing_against_the_rules_and_settings(watched: Watched) -> None:
    for arguments in (
        ("check", "rules", str(ALERTS)),
        ("test", "rules", str(ALERTS.with_name("alerts.test.yml"))),
        ("check", "config", str(watched.prometheus.configuration)),
    ):
        done = promtool(*arguments)
        assert (done.returncode, "SUCCESS" in done.stdout) == (0, True), done.stdout


def test_promtool_has_nothing_against_the_numbers(watched: Watched) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", watched.admin, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read()
    connection.close()
    assert b"clamsmtpd_messages_total" in text
    done = promtool("check", "metrics", given=text)
    assert (done.returncode, done.stdout) == (0, "")
