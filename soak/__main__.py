"""Sends thousands of numbered messages while everything is killed at random, and reckons up what became of each.

Exit status: 0 if every promise was kept, 1 if one was not.
"""

from __future__ import annotations

import argparse
import random
import sys

from soak.run import Plan, Run
from tests.support.process import ProgramError

_MESSAGES = 20_000


def main() -> int:
    """Run the soak as the command line says; print its table."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--messages", type=int, default=_MESSAGES, help="how many, a twentieth of them infected")
    parser.add_argument("--seed", type=int, help="for the same messages and the same order of trouble again")
    parser.add_argument("--workers", type=int, default=2, help="of the daemon, 2 or more")
    parser.add_argument("--rate", type=float, help="messages a second that are begun")
    parser.add_argument("--interval", type=float, help="seconds between two kinds of trouble, on average")
    parser.add_argument("--keep", action="store_true", help="keep the folder with records and logs")
    parser.add_argument("--quiet", action="store_true", help="print the table alone")
    options = parser.parse_args()
    if options.workers < 2:
        parser.error("a worker can only be killed, and replaced, where there are two or more")
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    plan = Plan.of(options.messages, seed=seed, workers=options.workers, rate=options.rate, interval=options.interval)
    run = Run(plan, quiet=options.quiet)
    try:
        result = run.run(keep=options.keep)
    except ProgramError as error:
        print(f"given up: {error}", file=sys.stderr)
        return 1
    print(result.table(), flush=True)
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
