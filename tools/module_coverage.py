"""Holds each pure module against its own test: every line and branch must be run by ``test_MODULE*.py``."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

#: Modules without I/O, which nothing but their own test may be needed to cover.
MODULES = [
    "account",
    "addresses",
    "board",
    "config",
    "headers",
    "jsonline",
    "logevents",
    "metrics",
    "parts",
    "policy",
    "proxyprotocol",
    "templates",
    "values",
    "ctl.certificate",
    "ctl.clamdconf",
    "ctl.findings",
    "ctl.logfile",
    "ctl.mta_settings",
    "ctl.rights",
    "clamd.allowance",
    "clamd.limit",
    "clamd.load",
    "verdicts",
    "clamd.protocol",
    "smtp.body",
    "smtp.capabilities",
    "smtp.identity",
    "smtp.message",
    "smtp.relay",
    "smtp.replies",
    "smtp.syntax",
]


def measure(module: str) -> tuple[str, int, str]:
    """Run one module's tests; return its name, the exit status, and what was printed."""
    *folders, name = module.split(".")
    tests = sorted(glob.glob(os.path.join("tests", "unit", *folders, f"test_{name}*.py")))
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            # The examples drawn are the same each time: coverage must not depend on luck.
            *("-m", "pytest", "-q", "-p", "no:xdist", "--hypothesis-seed=0", *tests),
            *(f"--cov=clamsmtpd.{module}", "--cov-branch", "--cov-report=term-missing", "--cov-fail-under=100"),
        ]
        environment = {**os.environ, "COVERAGE_FILE": os.path.join(folder, "coverage")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return module, done.returncode, done.stdout + done.stderr


def main() -> int:
    """Measure all modules at once; print what is missing."""
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for module, status, output in pool.map(measure, MODULES):
            print(f"{module}: {'covered' if status == 0 else 'NOT covered'}")
            if status:
                failed += 1
                print(output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
