"""The numbers, the alerts and the dashboard, held against a real Prometheus that scrapes a running daemon."""

from __future__ import annotations

import json
import re
import smtplib
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from clamsmtpd.values import TcpAddress
from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.process import free_port, wait_until
from tests.support.prometheus import PROMTOOL, Prometheus
from tests.support.sink import Sink

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
ALERTS = PACKAGING / "prometheus" / "alerts.yml"
DASHBOARD = PACKAGING / "grafana" / "clamsmtpd.json"

_NAME = re.compile(r"\bclamsmtpd_[a-z_]+")


@pytest.fixture(scope="module")
def scraped() -> Iterator[tuple[Daemon, Prometheus, str]]:
    """A daemon of two workers that has had seven messages, a Prometheus that scrapes it, and one exposition."""
    place = TcpAddress("127.0.0.1", free_port())
    with (
        Clamd() as clamd,
        Sink() as hop,
        Daemon(
            f"OutAddress: {hop.address}", f"ClamAddress: {clamd.unix}", "Workers: 2", f"Admin: {place}", level=3
        ) as daemon,
        Prometheus(place, ALERTS) as prometheus,
    ):
        for number in range(6):
            send(daemon, b"Subject: %d\r\n\r\nclean\r\n" % number)
        send(daemon, b"Subject: x\r\n\r\n" + EICAR + b"\r\n")
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        yield daemon, prometheus, text


def send(daemon: Daemon, text: bytes) -> None:
    with smtplib.SMTP(daemon.host, daemon.port, timeout=30) as client:
        client.sendmail("a@example.org", ["b@example.org"], text)


def promtool(*words: str | Path, given: str = "", folder: Path = ALERTS.parent) -> str:
    done = subprocess.run(
        [PROMTOOL, *words], input=given, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_told_arrives_as_it_happened(scraped: tuple[Daemon, Prometheus, str]) -> None:
    _, prometheus, _ = scraped
    wait_until(lambda: prometheus.value('up{job="clamsmtpd"}') == 1, "the daemon to be scraped")
    clean = 'clamsmtpd_messages_total{verdict="clean", outcome="delivered"}'
    wait_until(lambda: prometheus.value(clean) == 6, "six clean messages")
    infected = 'clamsmtpd_messages_total{verdict="infected", outcome="dropped"}'
    wait_until(lambda: prometheus.value(infected) == 1, "one infected message")
    wait_until(lambda: prometheus.value("clamsmtpd_scan_seconds_count") == 7, "seven scans")
    wait_until(lambda: prometheus.value("clamsmtpd_workers") == 2, "two workers")
    wait_until(lambda: prometheus.value("clamsmtpd_scanner_up") == 1, "a scanner that is up")
    wait_until(
        lambda: (prometheus.value("histogram_quantile(0.5, clamsmtpd_next_hop_seconds_bucket)") or 0) > 0, "a latency"
    )


def test_the_alerts_are_loaded_and_none_fires_without_a_reason(scraped: tuple[Daemon, Prometheus, str]) -> None:
    _, prometheus, _ = scraped

    def evaluated() -> bool:
        rules = prometheus.ask("rules")["groups"][0]["rules"]
        return all(rule["health"] == "ok" for rule in rules)

    wait_until(evaluated, "all alerts to be evaluated")
    (group,) = prometheus.ask("rules")["groups"]
    assert len(group["rules"]) == ALERTS.read_text().count("- alert:")
    assert prometheus.ask("alerts")["alerts"] == []


def test_the_alerts_are_good_and_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool("check", "rules", ALERTS)
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


def test_the_exposition_is_what_promtool_calls_good(scraped: tuple[Daemon, Prometheus, str]) -> None:
    assert promtool("check", "metrics", given=scraped[2]) == ""


def names_told(text: str) -> set[str]:
    """Return the names in an exposition."""
    return {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


@pytest.mark.parametrize(
    "file", [ALERTS, PACKAGING / "prometheus" / "alerts.test.yml", DASHBOARD], ids=lambda f: f.name
)
def test_each_number_that_they_speak_of_is_told(scraped: tuple[Daemon, Prometheus, str], file: Path) -> None:
    spoken = set(_NAME.findall(file.read_text()))
    assert spoken
    # Without a date of its own signatures, as here, clamd tells none.
    assert spoken - names_told(scraped[2]) <= {"clamsmtpd_scanner_signatures_timestamp_seconds"}


def test_each_expression_of_the_dashboard_is_one_to_prometheus(scraped: tuple[Daemon, Prometheus, str]) -> None:
    _, prometheus, _ = scraped
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 15
    for expression in expressions:
        prometheus.value(expression.replace("$__rate_interval", "5s").replace("$instance", ".*"))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
