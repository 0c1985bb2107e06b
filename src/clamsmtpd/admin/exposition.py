"""The numbers as Prometheus takes them: one table of names, and how each is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from clamsmtpd import __version__
from clamsmtpd.admin.view import Look, View
from clamsmtpd.metrics import (
    BOUNDS,
    CONNECTIONS,
    FAILURES,
    HISTOGRAMS,
    OCTETS,
    OUTCOMES,
    PASSED,
    REFUSED,
    SERVING,
    SESSIONS,
    SPARED,
    TURNED_AWAY,
    VERDICTS,
)
from clamsmtpd.smtp.events import Awaits

__all__ = ["EXPOSED", "Exposed", "Exposition"]

Sample = tuple[tuple[str, ...], float]


class Exposed(NamedTuple):
    """A number that is told: its name, what it is, ``kind`` (counter, gauge or histogram), its labels."""

    name: str
    help: str
    kind: str
    labels: tuple[str, ...] = ()


class _Number(NamedTuple):
    exposed: Exposed
    read: Callable[[View, Look], Iterator[Sample]]


def _total(metric: int) -> Callable[[View, Look], Iterator[Sample]]:
    def read(view: View, _look: Look) -> Iterator[Sample]:
        yield (), view.metrics.total(metric)

    return read


def _messages(view: View, _look: Look) -> Iterator[Sample]:
    # All of them from the start on: a rate needs a zero to begin with.
    for row, verdict in enumerate(VERDICTS):
        for column, outcome in enumerate(OUTCOMES):
            yield (verdict, outcome), view.metrics.messages(row, column)


def _failures(view: View, _look: Look) -> Iterator[Sample]:
    for failure, _ in FAILURES:
        yield (failure.name.lower(),), view.metrics.failures(failure)


def _sessions_by_phase(_view: View, look: Look) -> Iterator[Sample]:
    # All of them from the start on, as with messages.
    phases = {phase.name.lower(): 0 for phase in Awaits}
    for phase, count in (phases | look.sessions()).items():
        yield (phase,), count


def _limit(view: View, _look: Look) -> Iterator[Sample]:
    yield (), view.settings().max_connections


def _build(_view: View, _look: Look) -> Iterator[Sample]:
    yield (__version__,), 1


def _since(view: View, _look: Look) -> Iterator[Sample]:
    yield (), view.share.since


def _memory(_view: View, look: Look) -> Iterator[Sample]:
    for worker in look.workers:
        yield (str(worker.number),), worker.memory


def _scanners_up(_view: View, look: Look) -> Iterator[Sample]:
    for scanner in look.scanners:
        yield (scanner.address,), scanner.usable


def _scanners_signatures(_view: View, look: Look) -> Iterator[Sample]:
    for scanner in look.scanners:
        if scanner.signatures:
            yield (scanner.address,), scanner.signatures


def _scanners_outstanding(_view: View, look: Look) -> Iterator[Sample]:
    for scanner in look.scanners:
        yield (scanner.address,), scanner.outstanding


def _scanners_scans(_view: View, look: Look) -> Iterator[Sample]:
    for scanner in look.scanners:
        yield (scanner.address,), scanner.scans


def _scanners_seconds(_view: View, look: Look) -> Iterator[Sample]:
    for scanner in look.scanners:
        yield (scanner.address,), scanner.seconds


_SCANNER = ("scanner",)

_NUMBERS: tuple[_Number, ...] = (
    _Number(
        Exposed(
            "clamsmtpd_messages",
            "messages that have ended, by verdict and by what the client was told",
            "counter",
            ("verdict", "outcome"),
        ),
        _messages,
    ),
    _Number(Exposed("clamsmtpd_message_bytes", "octets of all messages that came in whole", "counter"), _total(OCTETS)),
    _Number(
        Exposed("clamsmtpd_messages_passed_unscanned", "messages that were delivered without a verdict", "counter"),
        _total(PASSED),
    ),
    _Number(
        Exposed(
            "clamsmtpd_messages_spared",
            "messages that had their verdict from the scan of another with the same octets",
            "counter",
        ),
        _total(SPARED),
    ),
    _Number(
        Exposed(
            "clamsmtpd_messages_turned_away",
            "messages refused before their text, for want of a scanner",
            "counter",
        ),
        _total(TURNED_AWAY),
    ),
    _Number(Exposed("clamsmtpd_connections", "connections that were given a session", "counter"), _total(CONNECTIONS)),
    _Number(
        Exposed("clamsmtpd_connections_refused", "connections told 421, as MaxConnections was reached", "counter"),
        _total(REFUSED),
    ),
    _Number(Exposed("clamsmtpd_failures", "what went wrong, by kind", "counter", ("kind",)), _failures),
    _Number(Exposed("clamsmtpd_sessions", "connections that are open now", "gauge"), _total(SESSIONS)),
    _Number(
        Exposed(
            "clamsmtpd_sessions_phase", "connections that are open now, by what is waited for", "gauge", ("phase",)
        ),
        _sessions_by_phase,
    ),
    _Number(Exposed("clamsmtpd_sessions_limit", "the setting MaxConnections", "gauge"), _limit),
    _Number(Exposed("clamsmtpd_workers", "processes that accept connections now", "gauge"), _total(SERVING)),
    _Number(
        Exposed("clamsmtpd_worker_memory_bytes", "what a worker has in memory", "gauge", ("worker",)),
        _memory,
    ),
    _Number(Exposed("clamsmtpd_scanner_up", "1 if the scanner can be used now", "gauge", _SCANNER), _scanners_up),
    _Number(
        Exposed(
            "clamsmtpd_scanner_signatures_timestamp_seconds", "the date of the scanner's signatures", "gauge", _SCANNER
        ),
        _scanners_signatures,
    ),
    _Number(
        Exposed("clamsmtpd_scanner_outstanding", "messages that the scanner has now", "gauge", _SCANNER),
        _scanners_outstanding,
    ),
    _Number(
        Exposed(
            "clamsmtpd_scanner_scans",
            "verdicts of the scanner for the workers that there are now",
            "counter",
            _SCANNER,
        ),
        _scanners_scans,
    ),
    _Number(
        Exposed("clamsmtpd_scanner_scan_seconds", "how long these took together", "counter", _SCANNER),
        _scanners_seconds,
    ),
    _Number(Exposed("clamsmtpd_start_time_seconds", "when the daemon started", "gauge"), _since),
    _Number(Exposed("clamsmtpd_build", "the version that runs; always 1", "gauge", ("version",)), _build),
)

#: All that is told; a counter's name has ``_total`` behind it.
EXPOSED: tuple[Exposed, ...] = (
    *(number.exposed for number in _NUMBERS),
    *(Exposed(f"clamsmtpd_{span.name.lower()}_seconds", text, "histogram") for span, text in HISTOGRAMS),
)


class _Collected(Collector):
    def __init__(self, view: View) -> None:
        self._view = view

    def describe(self) -> list[Metric]:
        # What could come need not be collected to be known; names cannot clash here.
        return []

    def collect(self) -> Iterator[Metric]:
        # What the workers say is read once, so that all numbers are of one moment.
        look = self._view.look()
        for exposed, read in _NUMBERS:
            make = CounterMetricFamily if exposed.kind == "counter" else GaugeMetricFamily
            family = make(exposed.name, exposed.help, labels=exposed.labels)
            for labels, value in read(self._view, look):
                family.add_metric(labels, value)
            yield family
        for span, text in HISTOGRAMS:
            histogram = self._view.metrics.histogram(span)
            bounds = [*(str(bound) for bound in BOUNDS), "+Inf"]
            buckets = list(zip(bounds, accumulate(map(float, histogram.counts)), strict=True))
            yield HistogramMetricFamily(
                f"clamsmtpd_{span.name.lower()}_seconds", text, buckets=buckets, sum_value=histogram.sum
            )


class Exposition:
    """What Prometheus is told."""

    def __init__(self, view: View) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collected(view))

    def render(self, accept: str) -> tuple[str, bytes]:
        """Return the media type, of those that ``accept`` names, and the text."""
        encode, media_type = choose_encoder(accept)
        return media_type, encode(self._registry)
