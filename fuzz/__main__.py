"""``python -m fuzz``: fuzzes one target after the other, each in a process of its own, and says what came of it.

What libFuzzer adds to a corpus goes to a copy of it. With a finding the exit status is 1, and the input that failed is
in .build/fuzz/TARGET, beside the log of the run.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fuzz import targets

_ROOT = Path(__file__).parent.parent
_ARTEFACTS = Path(".build", "fuzz")

#: Seconds that one input may take; the slowest of honest ones takes a tenth of one.
_INPUT_SECONDS = 10
_MEMORY_MB = 1024
#: Octets of an input: more than any corpus has, and few enough to be tried often.
_OCTETS_MAX = 4096
#: Seconds beyond its share that a target may take to be imported, and to run its corpus.
_GRACE_SECONDS = 120

_STATUS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)/")
_EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")
_ARTEFACT = re.compile(r"Test unit written to (.+)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a target. ``artefact`` is the input that failed; ``fault`` why there is none, though it failed."""

    name: str
    executions: int
    seconds: float
    coverage: int
    features: int
    corpus: int
    artefact: str
    fault: str

    @property
    def found(self) -> bool:
        """Whether there is something to be mended."""
        return bool(self.artefact or self.fault)

    def __str__(self) -> str:
        rate = self.executions / self.seconds if self.seconds else 0
        result = f"FOUND {self.artefact or self.fault}" if self.found else "no finding"
        return (
            f"{self.name:<10} {self.executions:>9} executions {rate:>7.0f}/s  coverage {self.coverage:>4}"
            f"  features {self.features:>5}  corpus {self.corpus:>4}  {result}"
        )


def main() -> int:
    """Fuzz as the command line says."""
    options = _parse()
    if importlib.util.find_spec("atheris") is None:
        print("fuzz: Atheris is not installed; scripts/setup python installs it", file=sys.stderr)
        return 2
    outcomes = []
    for name in options.targets:
        outcome = _run(targets.find(name), options)
        print(outcome, flush=True)
        outcomes.append(outcome)
    for outcome in outcomes:
        if outcome.artefact:
            print(f"again: {sys.executable} -m fuzz.engine {outcome.name} {outcome.artefact}")
    findings = sum(outcome.found for outcome in outcomes)
    executions = sum(outcome.executions for outcome in outcomes)
    print(f"fuzz: {len(outcomes)} targets, {executions} executions, {findings or 'no'} finding{'s' * (findings != 1)}")
    return 1 if findings else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz one target after the other.")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--seconds", type=float, default=60, help="for all targets together (default: 60)")
    limit.add_argument("--runs", type=int, default=-1, help="inputs for each target, however long they take")
    parser.add_argument(
        "--artefacts",
        type=Path,
        default=_ROOT / _ARTEFACTS,
        help=f"folder of logs and findings (default: {_ARTEFACTS})",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(targets.NAMES)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(targets.NAMES):
        parser.error(f"no target: {', '.join(sorted(unknown))}; there are {', '.join(targets.NAMES)}")
    options.targets = options.targets or list(targets.NAMES)
    return options


def _run(target: targets.Target, options: argparse.Namespace) -> Outcome:
    """Fuzz a target in a process of its own."""
    seconds, runs = options.seconds / len(options.targets), options.runs
    artefacts = options.artefacts.resolve() / target.name
    artefacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="clamsmtpd-fuzz-") as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for path in target.inputs():
            shutil.copy(path, corpus / path.name)
        words = Path(folder, "words")
        words.write_text("".join(f'"{_quoted(word)}"\n' for word in target.words), "ascii")
        limit = [f"-runs={runs}"] if runs >= 0 else [f"-max_total_time={max(int(seconds), 1)}"]
        command = [
            *(sys.executable, "-m", "fuzz.engine", target.name, str(corpus), *limit, f"-dict={words}"),
            *(f"-artifact_prefix={artefacts}/", f"-timeout={_INPUT_SECONDS}", f"-rss_limit_mb={_MEMORY_MB}"),
            *(f"-max_len={_OCTETS_MAX}", "-len_control=20", "-print_final_stats=1"),
        ]
        log = artefacts / "log"
        begin = time.monotonic()
        status = _wait(command, log, None if runs >= 0 else seconds + _GRACE_SECONDS)
        return _understand(target.name, time.monotonic() - begin, status, log)


def _wait(command: list[str], log: Path, seconds: float | None) -> int | None:
    """Return the exit status of the process, None if it had to be killed."""
    with log.open("wb") as file:
        try:
            done = subprocess.run(command, cwd=_ROOT, stdout=file, stderr=file, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return None
    return done.returncode


def _understand(name: str, seconds: float, status: int | None, log: Path) -> Outcome:
    text = log.read_text("utf-8", "backslashreplace")
    coverage, features, corpus = ([(0, 0, 0)] + [tuple(map(int, found)) for found in _STATUS.findall(text)])[-1]
    executed = _EXECUTED.search(text)
    artefact = _ARTEFACT.search(text)
    fault = ""
    if status is None:
        fault = f"no end: it had to be killed; see {log}"
    elif status and not artefact:
        fault = f"exit status {status}; see {log}"
    return Outcome(
        name,
        int(executed[1]) if executed else 0,
        seconds,
        coverage,
        features,
        corpus,
        artefact[1] if artefact else "",
        fault,
    )


def _quoted(word: bytes) -> str:
    """Write octets as libFuzzer's dictionaries want them."""
    return "".join(f"\\x{octet:02x}" for octet in word)


if __name__ == "__main__":
    sys.exit(main())
