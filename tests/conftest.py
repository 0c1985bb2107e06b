"""What all tests share: marks, root where it is needed, and servers that run for a whole session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.hosts import Hosts, Inside
from tests.support.process import Program
from tests.support.sink import Sink

# A loaded machine makes any example slow now and then; pytest-timeout watches over tests that hang.
hypothesis.settings.register_profile("clamsmtpd", deadline=None)
hypothesis.settings.load_profile("clamsmtpd")

_INTEGRATION = Path(__file__).parent / "integration"

NOT_ROOT = "needs root: run the tests as root to have it run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _INTEGRATION in item.path.parents:
            item.add_marker(pytest.mark.integration)
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=NOT_ROOT))


@pytest.fixture(scope="session")
def clamd() -> Iterator[Clamd]:
    """One clamd for each worker: it starts in a moment, and no worker can spoil another's."""
    with Clamd() as running:
        yield running


@pytest.fixture
def sink() -> Iterator[Sink]:
    """A next hop that accepts all mail and records it."""
    with Sink() as listening:
        yield listening


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users get to, whatever becomes of those around ``tmp_path`` meanwhile."""
    with tempfile.TemporaryDirectory(prefix="clamsmtpd-open-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def start_daemon() -> Iterator[Callable[..., Daemon]]:
    """Start daemons as ``Daemon`` does; they are stopped when the test ends."""
    with ExitStack() as stack:

        def start(*lines: str, **options: object) -> Daemon:
            return stack.enter_context(Daemon(*lines, **options))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """A client, a router and a server, each a network namespace."""
    made = Hosts()
    try:
        made.build()
        yield made
    finally:
        made.tear_down()


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    """Start programs inside one of these; they are stopped when the test ends."""
    with ExitStack() as stack:

        def start(name: str, *command: str) -> Program:
            program = Program(
                ["ip", "netns", "exec", name, *command], output=tmp_path / f"{name}-{len(os.listdir(tmp_path))}"
            )
            stack.callback(program.stop)
            return program

        yield start
