"""clamsmtpd: an SMTP filter that checks mail for viruses with ClamAV."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "2.0.0"
