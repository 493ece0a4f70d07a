"""`x402tools replay`: reports the usage events of a file, or of a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import BinaryIO, Iterator, List, Optional, Tuple

import click

from x402tools import _spool_file
from x402tools._cli import codes
from x402tools._cli.delivery import delivering_client
from x402tools._cli.meter import Meter
from x402tools._cli.options import Service, output_option, service_options
from x402tools._cli.output import Output, printable, say
from x402tools._cli.position import path_of
from x402tools._cli.replaying import OtherFileError, Rejected, Replay, Report
from x402tools._cli.usage_lines import FORMATS, Source
from x402tools.demo import interruption
from x402tools.demo.usage_file import BadLine
from x402tools.errors import ValidationError

_BAD_LINES_SHOWN = 10
_PIPE = "-"
_BESIDE_SPOOL = ("", "-wal", "-shm", ".lock", ".setup")


@click.command("replay")
@click.argument("file", type=click.Path(allow_dash=True), metavar="FILE")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Default: by the name, or by the first line.")
@click.option("--spool", metavar="PATH", help="Where events wait (default: FILE.replay.db).")
@click.option("--rejected", metavar="PATH", help="Where bad lines are kept (default: FILE.rejected).")
@click.option("--concurrency", type=click.IntRange(1, 1000), default=8, help="POSTs at once (default 8).")
@click.option(
    "--patience",
    type=click.FloatRange(0, 86400),
    default=30.0,
    metavar="SECONDS",
    help="Give up after so long without a delivery (default 30).",
)
@click.option("--dry-run", is_flag=True, help="Only check the lines.")
@service_options
@output_option
def replay(
    file: str,
    kind: Optional[str],
    spool: Optional[str],
    rejected: Optional[str],
    concurrency: int,
    patience: float,
    dry_run: bool,
    service: Service,
    output: Output,
) -> int:
    """Reports the usage events of FILE; - is stdin.

    \b
    A line of NDJSON:  {"envelope_id": "env_1", "amount": 1,
                        "metadata": {"endpoint": "/api"}}
    CSV:               envelope_id,amount,metadata.endpoint
                       env_1,1,/api
    Both may have an idempotency_key; CSV may have a column metadata, of JSON.

    The events wait in a spool beside FILE, which remembers how far it came: after an interruption, a kill included,
    the same command goes on, and a file that has grown is reported from where it ended. What was under way is sent
    again under the same idempotency key, made of the content of the file up to that line. For stdin name a --spool
    to go on from, or count on the keys alone.

    Bad lines are told with their number and kept, word for word, in FILE.rejected, which every run writes anew; when
    they are corrected, replay that file. Exits with 4 when there were any, or something is left or refused.
    """
    names = _Names(file, spool, rejected, dry_run)
    with contextlib.ExitStack() as parts:
        stop = parts.enter_context(interruption.noticed())
        stream, size = parts.enter_context(_opened(file))
        source = Source(stream)
        kept = Rejected(names.rejected or None)
        parts.callback(kept.close)
        meter = parts.enter_context(Meter("replaying"))
        replaying = Replay(source, kind or _kind(file, source), kept, _Teller(meter, size), stop)
        try:
            if dry_run:
                report = replaying.check()
            else:
                client = delivering_client(
                    names.spool, service, max_concurrency=concurrency, on_queue_full="raise", exit_timeout=2.0
                )
                with client:
                    assert client.buffer is not None
                    report = replaying.run(client, client.buffer, patience=patience)
                report = report._replace(stats=client.buffer.stats())  # closing has delivered what it could
        except ValidationError:
            raise
        except (OtherFileError, ValueError) as error:
            raise click.ClickException(_advice(str(error), error, names)) from error
    is_done = report.stats is None or not (report.stats.pending.events or report.stats.dead.events)
    if names.is_temporary and is_done and not report.interrupted:
        names.remove_spool()
    _tell(output, report, names, dry_run=dry_run)
    if report.interrupted:
        return codes.INTERRUPTED
    return codes.NEEDS_A_LOOK if report.rejected or not is_done else codes.DONE


class _Names:
    """The files around FILE."""

    def __init__(self, file: str, spool: Optional[str], rejected: Optional[str], dry_run: bool) -> None:
        self.is_temporary = file == _PIPE and spool is None
        if spool is not None:
            self.spool = spool
        elif self.is_temporary:
            self.spool = os.path.join(
                os.path.dirname(_spool_file.default_path()), f"replay-{int(time.time())}-{os.getpid()}.db"
            )
            if not dry_run:
                os.makedirs(os.path.dirname(self.spool), 0o700, exist_ok=True)
        else:
            self.spool = f"{file}.replay.db"
        self.rejected = rejected or (f"{self.spool}.rejected" if file == _PIPE else f"{file}.rejected")
        if dry_run and rejected is None:
            self.rejected = ""

    def remove_spool(self) -> None:
        """Of a pipe that was reported as a whole: nobody will go on with it."""
        for path in (*(self.spool + part for part in _BESIDE_SPOOL), path_of(self.spool)):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


class _Teller:
    """Shows how it goes."""

    def __init__(self, meter: Meter, size: Optional[int]) -> None:
        self._meter = meter
        self._size = size
        self._bad = 0

    def progress(self, replay: Replay) -> None:
        """The bar shows how far the file is read, the words what became of it."""
        waiting = 0 if replay.stats is None else replay.stats.pending.events
        note = f"{replay.lines:,} lines, {replay.rejected:,} bad, {waiting:,} waiting"
        self._meter.show(note, replay.source.bytes_read, self._size)

    def bad(self, line: BadLine) -> None:
        """The first few one by one."""
        self._bad += 1
        if self._bad <= _BAD_LINES_SHOWN:
            self._meter.say(f"line {line.number}: {printable(line.reason)}")
        elif self._bad == _BAD_LINES_SHOWN + 1:
            self._meter.say("(further bad lines are only counted)")


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Tuple[BinaryIO, Optional[int]]]:
    """The file and its size, as far as it has one."""
    if file == _PIPE:
        yield sys.stdin.buffer, None
        return
    with open(file, "rb") as stream:
        yield stream, os.fstat(stream.fileno()).st_size or None


def _kind(file: str, source: Source) -> str:
    if file.endswith(".csv"):
        return "csv"
    return "ndjson" if file.endswith((".ndjson", ".jsonl")) else source.guess()


def _advice(message: str, error: Exception, names: _Names) -> str:
    if isinstance(error, OtherFileError) and "--spool" not in message:
        return f"{message}. To report it as a new one, remove {names.spool} and {path_of(names.spool)}"
    return message


def _tell(output: Output, report: Report, names: _Names, *, dry_run: bool) -> None:
    stats = report.stats
    pairs: List[Tuple[str, object]] = [
        ("lines", report.lines),
        ("good" if dry_run else "recorded", report.recorded),
        ("bad", report.rejected),
    ]
    if stats is not None:
        pairs.insert(1, ("stored before", report.skipped))
        pairs += [
            ("delivered", stats.delivered.events),
            ("waiting", stats.pending.events),
            ("refused", stats.dead.events),
        ]
    document = {**report.document(), "rejected_file": names.rejected if report.rejected else None}
    output.facts(pairs, {**document, "spool": names.spool if os.path.exists(names.spool) else None})
    if report.rejected and names.rejected:
        say(f"The bad lines are in {names.rejected}.")
    if stats is not None and stats.dead.events:
        say(f"What was refused: x402tools buffer dead {names.spool}")
    if stats is not None and (report.interrupted or stats.pending.events):
        why = f" ({report.problem})" if report.problem else ""
        say(f"Not all is delivered{why}: the same command goes on.")
