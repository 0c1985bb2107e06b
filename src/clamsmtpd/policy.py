"""What becomes of a message: verdict and settings in, decision out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from clamsmtpd.values import (
    Action,
    ActionFor,
    Bounce,
    Clean,
    Decision,
    Defer,
    Deliver,
    Drop,
    Ground,
    Infected,
    Oversize,
    Unjudged,
    Verdict,
)

__all__ = ["Policy"]

# Fixed words, for rules of those behind us to look for. What a scanner or the system said is for the log.
_FAILED = Deliver(b"X-Virus-Unscanned: scan failed\r\n")
_TOO_LARGE = Deliver(b"X-Virus-Unscanned: message too large\r\n")


class Policy:
    """What the settings of these names want done with a message."""

    __slots__ = ("_action", "_actions_for", "_oversize", "_scan_failure")

    def __init__(
        self, *, action: Action, actions_for: Iterable[ActionFor], oversize: Unjudged, scan_failure: Unjudged
    ) -> None:
        self._action = action
        self._actions_for = [(re.compile(translate(each.pattern), re.IGNORECASE), each) for each in actions_for]
        self._oversize = oversize
        self._scan_failure = scan_failure

    def decide(self, verdict: Verdict, scanned: Deliver) -> Decision:
        """Return what to do with a message that got ``verdict``.

        ``scanned`` is the delivery of a clean one with its header field, which no other one has.
        """
        if isinstance(verdict, Clean):
            return scanned
        if isinstance(verdict, Infected):
            return self._decide_infected(verdict.name)
        if isinstance(verdict, Oversize):
            if self._oversize is Unjudged.PASS:
                return _TOO_LARGE
            return Bounce(Ground.OVERSIZE) if self._oversize is Unjudged.BOUNCE else Defer(Ground.OVERSIZE)
        return _FAILED if self._scan_failure is Unjudged.PASS else Defer()

    def rule_for(self, virus: str) -> ActionFor | None:
        """Return the first rule whose pattern matches the name of a virus; None if the action of all holds."""
        return next((rule for pattern, rule in self._actions_for if pattern.match(virus)), None)

    def _decide_infected(self, name: str) -> Decision:
        rule = self.rule_for(name)
        action = self._action if rule is None else rule.action
        if action is Action.PASS:
            # Not the field of clean mail as well: a filter behind us would find both.
            return Deliver(f"X-Virus-Infected: {name}\r\n".encode("ascii", "replace"))
        return Drop() if action is Action.DROP else Bounce()
