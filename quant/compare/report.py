"""``compare.html``: the verdict, where the student is worst, and examples side by side."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from capture.confidence import Signal
from capture.plots import COLOURS, axes_of, svg
from quant.compare.confidence import SIGNALS
from trainer.pages import render

TEMPLATE = Path(__file__).with_name("compare.html.j2")

Row = Mapping[str, Any]

SHOWN = 24  # slices of the plot, the worst first
INCH_PER_SLICE = 0.21
TITLE_LETTERS = 48  # in a line of a plot's title
TEXT = 600  # characters shown of a text; compare.json holds all
WORDS = {"non-inferior": COLOURS[2], "inferior": "#b3432b", "not enough data": "#8a94a4"}
RANKED = ("rarity", "teacher's uncertainty")


def write_page(content: Mapping[str, Any], path: Path) -> None:
    """Write the page; it needs nothing beside it.

    Args:
        content: Of ``compare.json``.
        path: Replaced whole.
    """
    rows = content["slices"]
    figures = [_forest(rows, content["margin"])]
    for kind in RANKED:
        ranked = [row for row in rows if row["kind"] == kind]
        if ranked:
            figures.append(_course(ranked, kind, content["margin"]))
    cascades = [_cascade(signal, found) for signal, found in (content["cascade"] or {}).items()]
    name = "right answers" if content["metric"] == "exact_match" else content["metric"]
    render(
        TEMPLATE,
        path,
        content=content,
        figures=figures,
        cascades=cascades,
        metric=name,
        colours=WORDS,
        short=shortened,
    )


def shortened(text: str) -> str:
    """A text for the page: its beginning and its end, if it is long."""
    if len(text) <= TEXT:
        return text
    half = TEXT // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _forest(rows: Sequence[Row], margin: float) -> str:
    """An interval per slice, the worst on top, all rows above them."""
    shown = rows[: SHOWN + 1]
    axes = axes_of("Difference by slice, worst first", "")
    figure = axes.get_figure()
    if isinstance(figure, Figure):
        figure.set_size_inches(8.6, 1.3 + INCH_PER_SLICE * len(shown))
    for place, row in enumerate(shown):
        colour = WORDS[row["word"]]
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(row["difference"], place, "o", color=colour, markersize=4)
    axes.set_yticks(range(len(shown)), [_label(row) for row in shown], fontsize=7.5)
    axes.invert_yaxis()
    axes.axvline(0, color="#c8ced8", linewidth=1)
    axes.axvline(-margin, color="#b3432b", linewidth=1, linestyle="--", label="margin")
    axes.set_xlabel("student minus teacher; intervals hold for all slices at once")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return svg(axes)


def _course(rows: Sequence[Row], kind: str, margin: float) -> str:
    """The difference from the lowest values of a kind to the highest."""
    ordered = sorted(rows, key=lambda row: int(row["name"].partition(" ")[0]))
    axes = axes_of(f"Difference by {kind}", "student minus teacher")
    places = range(1, len(ordered) + 1)
    middle = [row["difference"] for row in ordered]
    below = [row["difference"] - row["low"] for row in ordered]
    above = [row["high"] - row["difference"] for row in ordered]
    axes.errorbar(places, middle, (below, above), fmt="o-", color=COLOURS[0], capsize=3)
    axes.axhline(0, color="#c8ced8", linewidth=1)
    axes.axhline(-margin, color="#b3432b", linewidth=1, linestyle="--", label="margin")
    axes.set_xticks(list(places))
    axes.set_xlabel(f"{kind}, from the lowest tenth to the highest")
    axes.legend(frameon=False, fontsize=8)
    return svg(axes)


def _cascade(signal: Signal, found: Row) -> str:
    """Quality over the share of prompts that the teacher answers after all."""
    points = found["points"]
    shares = [point["escalated"] for point in points]
    title = textwrap.fill(f"Cascade by {SIGNALS[signal]}", TITLE_LETTERS)
    axes = axes_of(title, "cascade minus teacher")
    for key, label in (("difference", "measured"), ("low", "at least")):
        values = [point[key] for point in points]
        axes.plot(shares, values, ".-", label=label, color=COLOURS[key == "low"], markersize=4)
    ends = (points[-1]["escalated"], 1), (points[-1]["difference"], 0)
    axes.plot(*ends, ":", color="#9aa4b2", linewidth=1, label="if chance chose")
    if found["chosen"] is not None:
        axes.axvline(found["chosen"]["escalated"], color=COLOURS[2], linewidth=1, label="chosen")
    axes.set_xlabel("share of prompts that the teacher answers")
    axes.legend(frameon=False, fontsize=8)
    return svg(axes)


def _label(row: Row) -> str:
    name = f"{row['kind']} {row['name']}"
    name = name if len(name) <= 60 else f"{name[:57]}..."  # noqa: PLR2004 - letters that fit
    return f"{name.replace('$', chr(92) + '$')}  ({row['rows']})"
