"""``matrix.html``: every scheme on every model, quality against cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from capture.plots import COLOURS, axes_of, svg
from quant.pareto import is_measured, recommended
from trainer.pages import render

NAME_SIZE = 7
HEIGHTS = (3, -9, 11, -17, 19, -25)  # of a name over its point, the best first
TEMPLATE = Path(__file__).with_name("matrix.html.j2")
Row = Mapping[str, Any]


def write_page(content: Mapping[str, Any], path: Path) -> None:
    """Write the page; it needs nothing beside it."""
    rows = content["rows"]
    pick = recommended(rows, content["floor"])
    render(TEMPLATE, path, content=content, pick=pick, figure=_figure(rows, pick))


def _figure(rows: list[Row], pick: Row | None) -> str:
    """Right answers over speed, a colour per model, the front joined."""
    axes = axes_of("Right answers against speed", "share of the teacher's answers, to the letter")
    shown = [row for row in rows if is_measured(row)]
    folders = list(dict.fromkeys(row["folder"] for row in shown))
    for colour, folder in zip(COLOURS, folders, strict=False):
        of_model = [row for row in shown if row["folder"] == folder]
        places = [(row["speed"], row["exact_match"]) for row in of_model]
        axes.plot(*zip(*places, strict=True), "o", color=colour, label=folder)
    front = sorted((row["speed"], row["exact_match"]) for row in shown if row["pareto"])
    if front:
        axes.plot(*zip(*front, strict=True), "--", color="#9aa4b2", linewidth=1, label="front")
    if pick is not None:
        place = (pick["speed"], pick["exact_match"])
        axes.plot(*place, "o", markersize=14, fillstyle="none", color="#1c2430", label="pick")
    axes.set_xlabel("tokens per second over the first model's")
    axes.legend(frameon=False, fontsize=8)
    _write_names(axes, shown)
    return svg(axes)


def _write_names(axes: Axes, rows: list[Row]) -> None:
    """Beside each point its scheme, higher or lower where another one is in the way."""
    axes.margins(0.1, 0.12)
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.draw_without_rendering()  # from now on places are known
    taken = list[Bbox]()
    for row in sorted(rows, key=lambda row: (row["speed"], row["exact_match"])):
        name = "as it is" if row["scheme"] == "none" else row["scheme"]
        place = (row["speed"], row["exact_match"])
        for points in HEIGHTS:
            text = axes.annotate(
                name, place, (4, points), textcoords="offset points", fontsize=NAME_SIZE
            )
            box = text.get_window_extent()
            if points == HEIGHTS[-1] or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
