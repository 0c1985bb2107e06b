"""What becomes of a message: verdict and settings in, decision out."""

from __future__ import annotations

from clamsmtpd.values import Action, Bounce, Clean, Decision, Defer, Deliver, Drop, Infected, Verdict

__all__ = ["decide"]


def decide(verdict: Verdict, action: Action, scanned: Deliver) -> Decision:
    """Return what to do with a message that got ``verdict``.

    ``action`` is the setting for infected messages, ``scanned`` the delivery of a clean one with
    its header field. Without a verdict nothing passes: the client keeps the message and tries again.
    """
    match verdict:
        case Clean():
            return scanned
        case Infected(name):
            if action is Action.PASS:
                # Not the field of clean mail as well: a filter behind us would find both.
                return Deliver(f"X-Virus-Infected: {name}\r\n".encode("ascii", "replace"))
            return Drop() if action is Action.DROP else Bounce()
        case _:
            return Defer()
