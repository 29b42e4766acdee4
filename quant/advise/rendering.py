"""An advice as tables for people."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quant.advise.assumptions import Assumptions
from quant.advise.measured import Quality
from quant.advise.paths import Path
from quant.advise.report import KINDS, Report


def print_report(report: Report) -> None:
    """Print the advice, then what it rests on."""
    console = Console(highlight=False)
    console.print(_traffic(report))
    console.print(_paths(report))
    for name, kind in KINDS.items():
        found = report.measurements.qualities.get(kind)
        said = "not measured" if found is None else _quality(found)
        console.print(escape(f"{name}: quality {said}; next: {report.commands[name]}"))
    console.print(_assumptions(report))
    for warning in report.warnings:
        console.print(f"Mind: {escape(warning)}.")
    console.print(f"[bold]Recommended: {report.advice.recommended}[/bold]")
    for reason in report.advice.reasons:
        console.print(f"  {escape(reason)}")
    for volume, name in report.turns:
        console.print(f"  At {volume:,.0f} requests a month it would be: {name}.")
    command = report.commands[report.advice.recommended]
    if command:
        console.print(f"Next: {escape(command)}", soft_wrap=True)


def _traffic(report: Report) -> Table:
    seen = report.traffic
    span = f"{seen.first_at:%Y-%m-%d %H:%M} to {seen.last_at:%Y-%m-%d %H:%M}"
    rows = {
        "answered requests": f"{seen.requests:,}, {span}",
        "asked before, to the letter": _share(seen.repeated_share),
        "instructions (system message, tools, format)": _number(seen.tasks),
        "requests with the five most frequent": _share(seen.largest_tasks_share),
        "pairs of words that were there before": _share(seen.seen_share),
    }
    table = Table("traffic", "", title=f"Route {escape(seen.route)}")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _paths(report: Report) -> Table:
    columns = ("path", "GPUs", "serving", "saves", "chance", "costs", "there in", "pays back after")
    table = Table(*columns, title="Paths, money a month")
    for path in report.advice.paths:
        table.add_row(*_cells(path))
    return table


def _cells(path: Path) -> list[str]:
    if path.name == "none":
        return [path.name, f"{path.gpus:g}", f"{path.monthly_cost:,.0f}", "", "", "", "", ""]
    payback = path.payback_months
    return [
        path.name,
        f"{path.gpus:g}",
        f"{path.monthly_cost:,.0f}",
        f"{path.monthly_saving:,.0f}",
        f"{path.chance:.0%}",
        f"{path.cost:,.0f}",
        f"{path.days:g} days",
        "never" if payback is None else f"{payback:.1f} months",
    ]


def _quality(found: Quality) -> str:
    return f"{found.low:.1%} to {found.high:.1%} ({found.what}; {found.source})"


def _assumptions(report: Report) -> Table:
    table = Table("assumption", "value", "from", title="Assumptions; --set NAME=VALUE replaces one")
    for name in Assumptions.model_fields:
        value = getattr(report.assumptions.values, name)
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"  # noqa: PLR2004 - its thousands
        table.add_row(name, shown, escape(report.assumptions.reason(name)))
    return table


def _share(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1%}"


def _number(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"
