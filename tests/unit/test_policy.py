"""Verdict and settings to decision."""

from __future__ import annotations

from pathlib import Path

import pytest

from clamsmtpd.config import load
from clamsmtpd.policy import Policy
from clamsmtpd.values import (
    Bounce,
    Clean,
    Decision,
    Defer,
    Deliver,
    Drop,
    Ground,
    Infected,
    Oversize,
    Unscanned,
    Verdict,
)

SCANNED = Deliver(b"X-Virus-Scanned: yes\r\n", on_top=True)
FAILED = Deliver(b"X-Virus-Unscanned: scan failed\r\n")
TOO_LARGE = Deliver(b"X-Virus-Unscanned: message too large\r\n")
INFECTED = Deliver(b"X-Virus-Infected: Eicar\r\n")


def policy(folder: Path, *lines: str) -> Policy:
    path = folder / "conf"
    path.write_text("\n".join(["OutAddress: 25", *lines]))
    settings = load(str(path)).settings
    return Policy(
        action=settings.action,
        actions_for=settings.actions_for,
        oversize=settings.oversize,
        scan_failure=settings.scan_failure,
    )


@pytest.mark.parametrize(
    ("verdict", "line", "decision"),
    [
        (Clean(), "Action: drop", SCANNED),
        (Clean(), "Action: bounce", SCANNED),
        (Clean(), "Action: pass", SCANNED),
        (Infected("Eicar"), "Action: drop", Drop()),
        (Infected("Eicar"), "Action: bounce", Bounce(Ground.VIRUS)),
        (Infected("Eicar"), "Action: pass", INFECTED),
        (Infected("Eicar"), "ScanFailure: pass\nOversize: pass", Drop()),
        (Unscanned("why"), "", Defer(Ground.FAILURE)),
        (Unscanned("why"), "ScanFailure: defer\nAction: pass\nOversize: pass", Defer(Ground.FAILURE)),
        (Unscanned("why"), "ScanFailure: pass", FAILED),
        (Oversize("why"), "", Defer(Ground.OVERSIZE)),
        (Oversize("why"), "Oversize: defer\nAction: pass\nScanFailure: pass", Defer(Ground.OVERSIZE)),
        (Oversize("why"), "Oversize: bounce", Bounce(Ground.OVERSIZE)),
        (Oversize("why"), "Oversize: pass", TOO_LARGE),
    ],
)
def test_what_becomes_of_a_message(tmp_path: Path, verdict: Verdict, line: str, decision: Decision) -> None:
    assert policy(tmp_path, line).decide(verdict, SCANNED) == decision


@pytest.mark.parametrize(
    ("name", "decision"),
    [
        ("Heuristics.Encrypted.Zip", Deliver(b"X-Virus-Infected: Heuristics.Encrypted.Zip\r\n")),
        ("heuristics.encrypted.", Deliver(b"X-Virus-Infected: heuristics.encrypted.\r\n")),
        ("Heuristics.Phishing", Bounce()),
        ("Heuristics.Encrypted", Bounce()),
        ("Test.UNOFFICIAL", Drop()),
        ("Heuristics.Encrypted.UNOFFICIAL", Deliver(b"X-Virus-Infected: Heuristics.Encrypted.UNOFFICIAL\r\n")),
        ("Test.UNOFFICIAL.not", Bounce()),
        ("X1", Drop()),
        ("X12", Bounce()),
        ("Y.a+b", Drop()),
        ("Y.aab", Bounce()),
    ],
)
def test_the_first_pattern_that_matches_the_name_counts(tmp_path: Path, name: str, decision: Decision) -> None:
    some = policy(
        tmp_path,
        "Action: bounce",
        "ActionFor: Heuristics.Encrypted.* pass",
        "ActionFor: *.UNOFFICIAL drop",
        "ActionFor: X[0-9] drop",
        "ActionFor: ?.a+b drop",
    )
    assert some.decide(Infected(name), SCANNED) == decision


def test_a_pattern_is_for_infected_messages_only(tmp_path: Path) -> None:
    everything = policy(tmp_path, "ActionFor: * pass")
    assert everything.decide(Infected("Eicar"), SCANNED) == INFECTED
    assert everything.decide(Unscanned("why"), SCANNED) == Defer()
    assert everything.decide(Oversize("why"), SCANNED) == Defer(Ground.OVERSIZE)


def test_a_pattern_of_many_stars_takes_no_time(tmp_path: Path) -> None:
    stars = policy(tmp_path, f"ActionFor: {'*a' * 60}b pass")
    assert stars.decide(Infected("a" * 5000), SCANNED) == Drop()
