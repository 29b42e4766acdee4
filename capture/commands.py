"""``retort log``: look into the capture log, check it, keep it in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from capture import distributions, rewrite
from capture import erasure as erasing
from capture import export as exporting
from capture import statistics as counting
from capture import verify as verifying
from capture.commit import Committer
from capture.config import CaptureConfig, load
from capture.errors import ConfigError, LogError
from capture.intake import import_examples
from capture.lineage import BESIDE_CONFIG
from capture.log import Log, query_only
from capture.rendering import as_csv, as_json, print_fields, print_rows
from capture.repair import Repairer
from capture.selection import Selection, parse_moment
from capture.surprise import print_exchange, speller

DEFAULTS = (Path("retort.toml"), Path("demo/retort.toml"))
ENDING = (signal.SIGTERM, signal.SIGINT)
LOOK_SECONDS = 1.0

log_app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="The capture log: look into it, check it, keep it in order.",
)

Config = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="Default: ./retort.toml, else ./demo/retort.toml."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Where = Annotated[str, typer.Option("--where", help="SQL filter over `examples`.")]


@log_app.command()
def stats(config: Config = None, *, json: AsJson = False) -> None:
    """Rows, tokens, bytes per token, routes, times."""
    settings = _settings(config)
    with _busy("counting"):
        document = counting.statistics(settings.log).document()
    _print(document, json=json)


@log_app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over the views.")],
    config: Config = None,
    *,
    json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
) -> None:
    """Ask DuckDB, with the views exchanges, logits, examples and tokens; read-only."""
    settings = _settings(config)
    with _busy("querying"), Log(settings.log).connect() as connection:
        rows = query_only(connection, query)
    if json:
        typer.echo(as_json(rows.to_pylist()))
    elif csv:
        typer.echo(as_csv(rows), nl=False)
    else:
        print_rows(rows)


@log_app.command()
def show(
    exchange_id: Annotated[str, typer.Argument(help="Id of the exchange.")],
    config: Config = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Model folder, to show text, not ids.")
    ] = None,
    *,
    json: AsJson = False,
) -> None:
    """One exchange: its answer coloured by surprise, and the alternatives at each token."""
    shown = distributions.show(_settings(config).log, exchange_id)
    if json:
        typer.echo(as_json(asdict(shown)))
    else:
        print_exchange(shown, speller(tokenizer) if tokenizer else None)


@log_app.command()
def verify(
    config: Config = None,
    *,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="First salvage what is whole; count what is lost as lost."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Check that started = committed + dropped + in flight; exit 1 if rows are missing."""
    settings = _settings(config)
    with _busy("verifying"):
        repaired = {"repaired": Repairer(settings).repair().document()} if repair else {}
        found = verifying.verify(settings)
    _print(found.document() | repaired, json=json)
    if found.problems:
        advice = "" if repair else "; --repair salvages what can be read"
        raise LogError(f"{settings.log}: " + "; ".join(found.problems) + advice)


@log_app.command()
def commit(
    config: Config = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until ended.")] = False,
    json: AsJson = False,
) -> None:
    """Bring closed segments of the spool into the log, each row exactly once."""
    settings = _settings(config)
    if watch:
        _watch(Committer(settings))
        return
    with _busy("committing"):
        report = Committer(settings).commit()
        expired = Committer(settings).expire()
    _print({**asdict(report), "expired": expired.rows}, json=json)


@log_app.command()
def compact(config: Config = None, *, json: AsJson = False) -> None:
    """Join each day's small files; what they replace stays a week for older snapshots."""
    settings = _settings(config)
    with _busy("compacting"):
        done = rewrite.compact(settings.log)
    _print(asdict(done), json=json)


@log_app.command()
def erase(  # noqa: PLR0913  one option each
    config: Config = None,
    *,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Exchanges of a tenant.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Requests with this `user`.")] = None,
    exchange: Annotated[
        list[str] | None, typer.Option("--exchange", help="One exchange, by id; may be repeated.")
    ] = None,
    before: Annotated[
        str | None, typer.Option("--before", help="Begun before: 2026-01-31, or 30d ago.")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="SQL filter over `exchanges`.")
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Option("--models", help="Look here for what was made from the rows; repeatable."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Erase exchanges and their distributions for good; with several options, all must hold.

    Older snapshots become unreadable. Names the snapshots, checkpoints and bundles that were made
    from what is erased.
    """
    moment = None if before is None else parse_moment(before, datetime.now(UTC))
    selection = Selection(where, tenant, user, exchange or (), moment)
    if selection.is_everything:
        raise ConfigError(
            "nothing says what to erase; give --tenant, --user, --exchange, --before or --where"
        )
    path = _config_path(config)
    beside = [path.resolve().parent / name for name in BESIDE_CONFIG]
    with _busy("erasing"):
        done = erasing.erase(load(path), selection, models or beside)
    _print(done.document(), json=json)


@log_app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The file to write; a folder for distillkit.")],
    file_format: Annotated[
        exporting.Format, typer.Option("--format", help="File format.")
    ] = exporting.Format.JSONL,
    where: Where = "true",
    config: Config = None,
    *,
    json: AsJson = False,
) -> None:
    """Write examples to a file for other programs."""
    settings = _settings(config)
    with _busy("selecting"):
        snapshot = Log(settings.log).snapshot(where)
    with _progress(MofNCompleteColumn()) as progress:
        task = progress.add_task("writing", total=snapshot.num_rows)
        exporting.export(snapshot, out, file_format, lambda rows: progress.advance(task, rows))
    _print({"file": str(out), "snapshot": snapshot.model_dump(mode="json")}, json=json)


@log_app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="The file, or DistillKit's folder.")],
    file_format: Annotated[exporting.Format, typer.Option("--format", help="File format.")],
    config: Config = None,
    *,
    json: AsJson = False,
) -> None:
    """Bring another program's examples, or an exported file, into the log; safe to repeat."""
    settings = _settings(config)
    with _progress(MofNCompleteColumn()) as progress:
        task = progress.add_task("importing", total=None)
        done = import_examples(
            settings, path, file_format, lambda rows: progress.advance(task, rows)
        )
    _print(asdict(done), json=json)


def _settings(config: Path | None) -> CaptureConfig:
    """Read the configuration given, or the first of the default ones."""
    return load(_config_path(config))


def _config_path(config: Path | None) -> Path:
    if config is not None:
        return config
    for path in DEFAULTS:
        if path.exists():
            return path
    looked = " nor ".join(f"./{path}" for path in DEFAULTS)
    raise ConfigError(f"neither {looked} is here; give the configuration with -c")


def _watch(committer: Committer) -> None:
    """Commit until SIGTERM or SIGINT, then once more."""
    stop = threading.Event()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    thread = threading.Thread(target=committer.watch, args=(stop,), name="committer")
    thread.start()
    while thread.is_alive() and not signal.sigtimedwait(ENDING, LOOK_SECONDS):
        pass
    stop.set()
    thread.join()


def _print(document: dict[str, object], *, json: bool) -> None:
    if json:
        typer.echo(as_json(document))
    else:
        print_fields(document)


@contextmanager
def _busy(doing: str) -> Iterator[None]:
    """Show that something is going on, and for how long."""
    with _progress() as progress:
        progress.add_task(doing, total=None)
        yield


def _progress(*columns: ProgressColumn) -> Progress:
    """Open a bar on standard error, where a person looks at it."""
    console = Console(stderr=True)
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeElapsedColumn())
    return Progress(*shown, console=console, transient=True, disable=not console.is_terminal)
