"""Nodemailer, the mail client of programs in JavaScript, unpacked beside the system."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.unpacked import UNPACKED

__all__ = ["Sent", "send"]

_SCRIPT = Path(__file__).with_suffix(".cjs")

_MODULES = UNPACKED / "usr" / "share" / "nodejs"


@dataclass(frozen=True)
class Sent:
    """What Nodemailer tells of one mail. ``error`` is its own text for what failed, and None if nothing did."""

    error: str | None
    code: str | None
    response: str | None
    response_code: int | None
    accepted: tuple[str, ...]
    rejected: tuple[str, ...]


def send(
    port: int,
    message: bytes | Mapping[str, object],
    *,
    sender: str = "a@example.test",
    recipients: Sequence[str] = ("b@example.test",),
    host: str = "127.0.0.1",
    lmtp: bool = False,
    starttls: Path | None = None,
    dsn: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
) -> Sent:
    """Send one mail: bytes go as they are, of fields such as "subject" and "text" Nodemailer makes a mail.

    With ``starttls``, the file of the authority to trust, it insists on encryption; without, it uses none.
    ``dsn`` is what it asks for by RFC 3461, in its own words; ``options`` are further ones of its transport.
    """
    transport = {
        "host": host,
        "port": port,
        "lmtp": lmtp,
        "name": "client.example.test",
        "secure": False,
        "ignoreTLS": starttls is None,
        "requireTLS": starttls is not None,
        "tls": {"ca": starttls.read_text()} if starttls else {},
        "connectionTimeout": 20_000,
        "socketTimeout": 30_000,
        **(options or {}),
    }
    mail: dict[str, object] = {
        **({} if isinstance(message, bytes) else message),
        "envelope": {"from": sender, "to": list(recipients)},
        **({"dsn": dict(dsn)} if dsn else {}),
    }
    raw = base64.b64encode(message).decode() if isinstance(message, bytes) else None
    done = subprocess.run(
        ["node", str(_SCRIPT)],
        input=json.dumps({"transport": transport, "mail": mail, "raw": raw}).encode(),
        env={**os.environ, "NODE_PATH": str(_MODULES)},
        capture_output=True,
        timeout=50,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"node ended with {done.returncode}: {done.stderr.decode(errors='backslashreplace')}")
    told = json.loads(done.stdout)
    return Sent(
        error=told["error"],
        code=told["code"],
        response=told["response"],
        response_code=told["responseCode"],
        accepted=tuple(told["accepted"]),
        rejected=tuple(told["rejected"]),
    )
