"""``retort advise``: which path to cheaper answers pays for this traffic."""

from pathlib import Path
from typing import Annotated

import orjson
import typer

from capture.config import load
from capture.log import Log
from quant.advise.assumptions import parse_settings
from quant.advise.measured import Files
from quant.advise.rendering import print_report
from quant.advise.report import make_report

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

MATRIX, COMPARISON = Path("matrix/matrix.json"), Path("compare/compare.json")


@app.command()
def advise(  # noqa: PLR0913, PLR0917 - one per option
    config: Annotated[
        Path, typer.Option("-c", "--config", help="TOML file with a table capture.")
    ] = Path("retort.toml"),
    route: Annotated[
        str | None,
        typer.Option("--route", "-r", help="Whose traffic, if the log has several."),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Folder of the model that answers, for its size.")
    ] = None,
    matrix: Annotated[
        Path | None, typer.Option(help=f"Of `retort quantize matrix`; {MATRIX} if it is there.")
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(help=f"Of `retort compare`; repeatable; {COMPARISON} if it is there."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="What `retort distill plan --pilot --json` printed.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of an assumption; repeatable."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say which path pays: quantizing, distilling, both in that order, or neither.

    Every figure that the log and the measurements do not give is an assumption: all of them are
    shown, and --set replaces any.
    """
    given = parse_settings(settings or [])
    files = Files(
        matrix or (MATRIX if MATRIX.exists() else None),
        compare or ([COMPARISON] if COMPARISON.exists() else []),
        plan,
        teacher,
    )
    report = make_report(Log(load(config).log), route, files, given, str(config))
    if as_json:
        typer.echo(orjson.dumps(report.document(), option=orjson.OPT_INDENT_2).decode())
    else:
        print_report(report)
