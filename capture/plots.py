"""What the plots of every report have in common: a small figure, as SVG to be put into the page."""

import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("svg")
COLOURS = ("#1f5a99", "#d9822b", "#3d8b57", "#8a4f9e")


def axes_of(title: str, y_label: str) -> Axes:
    """Begin a plot."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def svg(axes: Axes) -> str:
    """Draw it; the same plot gives the same text."""
    buffer = io.StringIO()
    figure = axes.get_figure()
    if isinstance(figure, Figure):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
