"""Curves of a run, as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from capture.plots import COLOURS, axes_of, svg


def curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str, label: str, figure: str
) -> str:
    """One measure of held-out answers over the seconds of training, a curve per run."""
    axes = axes_of(title, label)
    for index, (name, points) in enumerate(runs.items()):
        seconds = [point["seconds"] for point in points]
        values = [point["quality"][figure] for point in points]
        axes.plot(seconds, values, "o-", markersize=3, color=COLOURS[index], label=name)
    axes.set_xlabel("seconds of training")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return svg(axes)
