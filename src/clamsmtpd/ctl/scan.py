"""``clamsmtpctl scan``: saved messages through the policy of the settings, delivered to nobody."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import click
from rich.progress import Progress

from clamsmtpd.account import Account, Tag
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.config import Settings
from clamsmtpd.ctl.output import Status, console, fail, json_option, load_settings, print_json, shown
from clamsmtpd.hooks import HookRunner
from clamsmtpd.inspection import Inspector, Route
from clamsmtpd.metrics import ROW_SIZE, Metrics
from clamsmtpd.policy import Policy
from clamsmtpd.scans import Scans
from clamsmtpd.smtp import replies
from clamsmtpd.smtp.message import Message
from clamsmtpd.smtp.relay import reply_to
from clamsmtpd.spool import Spool
from clamsmtpd.values import Clean, Deliver, Envelope, Infected, Oversize, Unscanned
from clamsmtpd.verdicts import LATEST_SIZE, REGION_SIZE, Verdicts

__all__ = ["Result", "scan"]

#: Messages that are scanned at once.
AT_ONCE = 8

#: Seconds to wait for a scanner.
PATIENCE = 30.0

_PIECE = 65536

_LINE_END = re.compile(rb"\r?\n")


@dataclass(frozen=True, slots=True)
class Result:
    """What would become of one message. ``outcome`` is deliver, drop, bounce, defer or unreadable."""

    file: str
    outcome: str
    verdict: str = ""
    virus: str = ""
    reply: str = ""
    field: str = ""
    renamed: int = 0
    why: str = ""

    @property
    def well(self) -> bool:
        """Whether it is clean and would be delivered."""
        return self.outcome == "deliver" and self.verdict == "clean"


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--all", "show_all", is_flag=True, help="List clean messages too.")
@json_option
@click.pass_context
def scan(context: click.Context, files: Sequence[str], *, show_all: bool, as_json: bool) -> None:
    """Tell what would become of saved messages with the settings of --config, and why. Nothing is delivered or kept.

    FILE is a message, a folder of them such as a Maildir, or - for standard input. A line that ends with LF alone is
    taken to end with CRLF, as in mail. The exit status is 0 if all are clean and would be delivered, 1 if not, 3 if no
    scanner can be used.

    \b
    Examples:
      clamsmtpctl scan invoice.eml
      clamsmtpctl -f new.conf scan ~/Maildir
      clamsmtpctl scan --json - < message.eml
    """
    settings = load_settings(context).settings
    # What the parts of the daemon would log is told by the results.
    logging.getLogger("clamsmtpd").addHandler(logging.NullHandler())
    logging.getLogger("clamsmtpd").propagate = False
    paths = list(_expand(files))
    if not paths:
        fail("there is no message in these folders", Status.USAGE)
    many = len(paths) > 1
    with Progress(
        console=console(), transient=True, disable=as_json or not many or not sys.stdout.isatty()
    ) as progress:
        bar = progress.add_task("scanning", total=len(paths))
        results = asyncio.run(_scan_all(settings, paths, lambda: progress.advance(bar)))
    if as_json:
        _print_json(results)
    else:
        for result in results:
            if show_all or not many or not result.well:
                click.echo(shown(_line(result)))
        if many:
            click.echo(_summary(results))
    if not all(result.well for result in results):
        raise click.exceptions.Exit(Status.FAILED)


def _print_json(results: Sequence[Result]) -> None:
    print_json({"messages": [dataclasses.asdict(result) for result in results], "summary": _counts(results)})


def _expand(files: Sequence[str]) -> Iterator[str]:
    """Yield the files, those in folders as well; of a Maildir, its messages alone."""
    closed: list[str] = []
    for file in files:
        if file == "-" or not os.path.isdir(file):
            yield file
            continue
        for folder, folders, names in os.walk(file, onerror=lambda error: closed.append(str(error.filename))):
            folders.sort()
            is_maildir = {"cur", "new", "tmp"} <= set(folders)
            for name in () if is_maildir else sorted(names):
                path = os.path.join(folder, name)
                # Neither an index of a mail client nor a pipe is a message.
                if not name.startswith(".") and os.path.isfile(path) and not os.path.islink(path):
                    yield path
            if is_maildir:
                folders[:] = [found for found in folders if found != "tmp"]
    # They are no messages, and no reason to be silent: opened as such, each says why not.
    yield from closed


async def _scan_all(settings: Settings, paths: Sequence[str], advance: Callable[[], None]) -> list[Result]:
    metrics = Metrics(memoryview(bytearray(ROW_SIZE)))
    pool = Pool(
        settings.clam_addresses,
        time_out=settings.time_out,
        row=metrics.row(0),
        temp_directory=settings.temp_directory,
    )
    pool.start()
    try:
        try:
            async with asyncio.timeout(min(PATIENCE, settings.time_out)):
                await pool.usable()
        except TimeoutError:
            told = "; ".join(f"clamd at {one['address']}: {one['fault'] or 'no answer'}" for one in pool.describe())
            fail(f"no scanner can be used: {told}", Status.UNREACHABLE)
        verdicts = Verdicts(bytearray(LATEST_SIZE + REGION_SIZE), 0, 1, 0)
        quiet = dataclasses.replace(settings, quarantine=False, virus_action=None, debug_files=False)
        inspector = Inspector(quiet, Scans(pool, verdicts, metrics.row(0)), HookRunner(), row=metrics.row(0))
        room = asyncio.Semaphore(AT_ONCE)

        async def one(path: str) -> Result:
            async with room:
                try:
                    return await _scan_one(inspector, quiet, path)
                except OSError as error:
                    return Result(path, "unreadable", why=str(error.strerror or error))
                finally:
                    advance()

        return await asyncio.gather(*(one(path) for path in paths))
    finally:
        pool.close()
        # What was cancelled hears of it now.
        await asyncio.sleep(0)


async def _scan_one(inspector: Inspector, settings: Settings, path: str) -> Result:
    """Let one message take the way of a real one. Raises OSError."""
    # As by BDAT, for a file has no stuffed dots; and as it would go on by DATA.
    message = Message(chunked=True)
    spool = Spool(settings.temp_directory, "clamsmtpctl")
    try:
        if path == "-":
            await _read(sys.stdin.buffer, message, spool)
        else:
            with open(path, "rb") as file:  # noqa: ASYNC230 - nobody else is served here
                await _read(file, message, spool)
        if message.deceptive:
            return Result(path, "bounce", reply=_text(replies.DECEPTIVE_END), why="a dot stands between odd line ends")
        account = Account(Tag("clamsmtpctl"))
        decision = await inspector.inspect(
            spool,
            Envelope(),
            Route(Tag("clamsmtpctl"), "127.0.0.1", "127.0.0.1", "127.0.0.1"),
            stuffed=message.stuffed,
            header=message.header_reach,
            account=account,
        )
    finally:
        spool.close()
    verdict = account.verdict
    told = account.as_dict()
    reply = field = ""
    renamed = 0
    if isinstance(decision, Deliver):
        field, renamed = _text(decision.field), len(decision.insertions)
    else:
        reply = _text(reply_to(decision))
    return Result(
        path,
        type(decision).__name__.lower(),
        str(told["verdict"] or ""),
        str(told["virus"]),
        reply,
        field,
        renamed,
        _why(settings, verdict),
    )


async def _read(file: BinaryIO, message: Message, spool: Spool) -> None:
    held = b""
    while piece := file.read(_PIECE):
        data = held + piece
        # A CR may have its LF in the next piece.
        held = data[-1:] if data.endswith(b"\r") else b""
        spool.append(message.feed_chunk(_LINE_END.sub(b"\r\n", data[: len(data) - len(held)])))
        await asyncio.sleep(0)
    if held:
        spool.append(message.feed_chunk(held))
    if rest := message.finish_chunks():
        spool.append(rest)


def _why(settings: Settings, verdict: object) -> str:
    match verdict:
        case Infected(name):
            policy = Policy(
                action=settings.action,
                actions_for=settings.actions_for,
                oversize=settings.oversize,
                scan_failure=settings.scan_failure,
            )
            rule = policy.rule_for(name)
            return f"ActionFor: {rule}" if rule is not None else f"Action: {settings.action.value}"
        case Oversize(reason):
            return f"Oversize: {settings.oversize.value}; {reason}"
        case Unscanned(reason):
            return f"ScanFailure: {settings.scan_failure.value}; {reason}"
        case Clean():
            return "it is clean"
        case _:
            return ""


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace").strip().replace("\r\n", " ")


def _line(result: Result) -> str:
    if result.outcome == "unreadable":
        return f"{result.file}: cannot be read: {result.why}"
    found = result.virus or result.verdict or "not scanned"
    parts = [f"{result.file}: {found}: {result.outcome} ({result.why})"]
    if result.reply:
        parts.append(f"the client is told: {result.reply}")
    if result.field and not result.well:
        parts.append(f"added: {result.field}")
    if result.renamed:
        parts.append(f"header fields renamed that pretend to be ours: {result.renamed}")
    return "; ".join(parts)


def _counts(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    return {
        "outcomes": dict(Counter(result.outcome for result in results).most_common()),
        "verdicts": dict(Counter(result.verdict or "none" for result in results).most_common()),
        "viruses": dict(Counter(result.virus for result in results if result.virus).most_common()),
    }


def _summary(results: Sequence[Result]) -> str:
    counts = _counts(results)
    lines = [f"{len(results)} messages: " + ", ".join(f"{name} {count}" for name, count in counts["outcomes"].items())]
    lines += [f"  {count:6}  {shown(virus)}" for virus, count in counts["viruses"].items()]
    return "\n".join(lines)
