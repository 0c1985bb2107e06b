"""``python -m clamsmtpd``."""

from __future__ import annotations

import sys

from clamsmtpd.cli import main

if __name__ == "__main__":
    sys.exit(main())
