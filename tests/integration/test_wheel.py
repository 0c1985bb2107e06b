"""The wheel and the source distribution: what is in them, and what an environment of nothing else can do with them.

No network is asked: libraries are lent by the environment of the tests, and pip finds out whether they are enough.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import smtplib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from clamsmtpd import __version__
from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.sink import Sink

ROOT = Path(__file__).parents[2]

pytest.importorskip("hatchling", reason="SKIPPED: hatchling is not installed; see scripts/setup")


class Environment:
    """A virtual environment without anything in it, not even pip."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        (self._libraries,) = folder.glob("lib/python3*/site-packages")

    def lend(self, *names: str) -> None:
        """Copy libraries of our own environment there, with what they depend on."""
        for name in names:
            distribution = importlib.metadata.distribution(name)
            for file in distribution.files or []:
                target = self._libraries / file
                if ".." not in file.parts and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(str(distribution.locate_file(file)), target)
            # What has a marker is for other systems or for an extra.
            self.lend(*(re.split(r"[^\w.-]", need)[0] for need in distribution.requires or [] if ";" not in need))

    def install(self, what: str) -> subprocess.CompletedProcess[str]:
        """Have pip install it, with nothing but what is there to satisfy its needs."""
        return subprocess.run(
            [sys.executable, "-m", "pip", f"--python={self.python}", "install", "--no-index", "--no-input", what],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of it, without our own paths."""
        return subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]], capture_output=True, text=True, check=False, env={}
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both distributions, built from the files that belong to the source."""
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"clamsmtpd-{__version__}-py3-none-any.whl"


@pytest.fixture
def lean(tmp_path: Path, wheel: Path) -> Environment:
    """An environment with the wheel and uvloop."""
    environment = Environment(tmp_path / "environment")
    environment.lend("uvloop")
    installed = environment.install(str(wheel))
    assert installed.returncode == 0, installed.stderr
    return environment


def test_the_wheel_holds_the_package_and_all_that_an_administrator_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert modules <= names
    data = f"clamsmtpd-{__version__}.data/data/share"
    pages = {f"{data}/man/man{path.suffix[1:]}/{path.name}" for path in (ROOT / "man").iterdir()}
    assert len(pages) >= 2
    assert pages <= names
    assert {f"{data}/clamsmtpd/clamsmtpd.{kind}" for kind in ("service", "socket")} <= names
    assert f"{data}/doc/clamsmtpd/clamsmtpd.conf.sample" in names
    assert not [name for name in names if not name.startswith(("clamsmtpd/", f"clamsmtpd-{__version__}."))]


def test_the_source_distribution_holds_what_it_is_built_and_tested_from_and_nothing_hidden(built: Path) -> None:
    with tarfile.open(built / f"clamsmtpd-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    parts = ("man", "etc", "packaging", "scripts", "tests", "tools")
    files = [str(path.relative_to(ROOT)) for part in parts for path in (ROOT / part).rglob("*") if path.is_file()]
    assert {name for name in files if "__pycache__" not in name} <= names
    # hatchling adds that by itself: what it says is what is left out.
    assert {name for name in names if name.startswith(".")} <= {".gitignore"}


def test_without_uvloop_the_wheel_is_not_installed(tmp_path: Path, wheel: Path) -> None:
    refused = Environment(tmp_path / "environment").install(str(wheel))
    assert refused.returncode != 0
    assert "uvloop" in refused.stderr


def test_with_uvloop_alone_the_daemon_checks_mail(lean: Environment, clamd: Clamd, sink: Sink) -> None:
    missing = "click", "rich", "h11", "prometheus_client", "pip"
    program = f"import importlib.util as u; print([n for n in {missing!r} if u.find_spec(n)])"
    assert lean.run("python", "-c", program).stdout == "[]\n"
    # "env -i" leaves nothing of the paths that our own environment has, and the shell drops the tests' Python.
    wrapper = ["/usr/bin/env", "-i", "/bin/sh", "-c", f'shift 3; exec {lean.folder}/bin/clamsmtpd "$@"', "sh"]
    settings = f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}"
    with Daemon(*settings, level=3, wrapper=wrapper) as daemon:
        daemon.wait_for_log("ClamAV")
        for text in (b"Subject: lunch\r\n\r\nAt noon?\r\n", b"Subject: invoice\r\n\r\n" + EICAR + b"\r\n"):
            with smtplib.SMTP(daemon.host, daemon.port, timeout=30) as client:
                client.sendmail("a@example.test", ["b@example.test"], text)
        assert len(daemon.message_lines()) == 2
    (arrived,) = sink.messages
    assert arrived.startswith(b"Subject: lunch\r\n")


def test_without_its_libraries_clamsmtpctl_says_what_to_install(lean: Environment) -> None:
    ended = lean.run("clamsmtpctl", "--help")
    assert ended.returncode == 3
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert "clamsmtpd[ctl]" in line
    assert "python3-click" in line


@pytest.mark.parametrize(("extra", "libraries"), [("ctl", ["click", "rich"]), ("admin", ["h11", "prometheus-client"])])
def test_an_extra_wants_its_libraries_and_no_others(
    lean: Environment, wheel: Path, extra: str, libraries: list[str]
) -> None:
    refused = lean.install(f"{wheel}[{extra}]")
    assert refused.returncode != 0
    assert libraries[0] in refused.stderr
    lean.lend(*libraries)
    installed = lean.install(f"{wheel}[{extra}]")
    assert installed.returncode == 0, installed.stderr
    if extra == "ctl":
        shown = lean.run("clamsmtpctl", "--version")
        assert (shown.returncode, shown.stdout) == (0, f"clamsmtpctl, version {__version__}\n")


def test_the_debian_package_has_the_same_version() -> None:
    first = (ROOT / "packaging" / "debian" / "changelog").read_text().splitlines()[0]
    assert first.startswith(f"clamsmtpd ({__version__}) ")
