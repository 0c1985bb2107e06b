"""Verdict and action to decision."""

from __future__ import annotations

import pytest

from clamsmtpd.policy import decide
from clamsmtpd.values import Action, Bounce, Clean, Decision, Defer, Deliver, Drop, Infected, Unscanned, Verdict

SCANNED = Deliver(b"X-Virus-Scanned: yes\r\n", on_top=True)


@pytest.mark.parametrize(
    ("verdict", "action", "decision"),
    [
        (Clean(), Action.DROP, SCANNED),
        (Clean(), Action.BOUNCE, SCANNED),
        (Clean(), Action.PASS, SCANNED),
        (Infected("Eicar"), Action.DROP, Drop()),
        (Infected("Eicar"), Action.BOUNCE, Bounce()),
        (Infected("Eicar"), Action.PASS, Deliver(b"X-Virus-Infected: Eicar\r\n")),
        (Unscanned("why"), Action.DROP, Defer()),
        (Unscanned("why"), Action.BOUNCE, Defer()),
        (Unscanned("why"), Action.PASS, Defer()),
    ],
)
def test_what_becomes_of_a_message(verdict: Verdict, action: Action, decision: Decision) -> None:
    assert decide(verdict, action, SCANNED) == decision
