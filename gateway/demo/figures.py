"""The report's plots, as SVG to be put into the page."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from capture.plots import COLOURS, axes_of, svg

Bars = Mapping[str, Sequence[float | None]]


def quality(
    names: Sequence[str], common: Sequence[float | None], rare: Sequence[float | None]
) -> str:
    """Exact match of each model on common and on rare forms, shares from 0 to 1."""
    axes = axes_of("Exact match on held-out prompts", "share of answers")
    _bars(axes, names, {"common forms": common, "rare forms": rare})
    axes.set_ylim(0, 1.25)  # the legend has its place above
    return svg(axes)


def cost(names: Sequence[str], megabytes: Sequence[float], speeds: Sequence[float]) -> str:
    """Size on disk against throughput, a point per model."""
    axes = axes_of("Size and speed", "tokens per second (one thread)")
    for index, (name, size, speed) in enumerate(zip(names, megabytes, speeds, strict=True)):
        axes.scatter(size, speed, s=90, color=COLOURS[index % len(COLOURS)], label=name)
    axes.set_xlabel("weights on disk, MB")
    axes.set_xlim(0, max(megabytes) * 1.3)
    axes.set_ylim(0, max(speeds) * 1.2)
    axes.legend(frameon=False, loc="upper right")  # what is large is slow
    return svg(axes)


def capture(on: Sequence[float], off: Sequence[float]) -> str:
    """Throughput with and without the tap, measurement by measurement."""
    axes = axes_of("Engine throughput, asked in turn", "tokens per second")
    turns = range(1, len(on) + 1)
    axes.plot(turns, off, "o-", color=COLOURS[1], label="no tap")
    axes.plot(turns, on, "o-", color=COLOURS[0], label="tap, every request captured")
    axes.set_xticks(list(turns))
    axes.set_xlabel("pair")
    axes.set_ylim(0, max([*on, *off]) * 1.2)
    axes.legend(frameon=False, loc="lower right")
    return svg(axes)


def answered(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Share of the answers by deployment; a curve of (request, share) points each."""
    axes = axes_of("Who answered, request by request", "share of the last 50 answers")
    for index, (name, points) in enumerate(curves.items()):
        if points:
            axes.plot(*zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], label=name)
    axes.set_xlabel("request")
    axes.set_ylim(-0.03, 1.1)
    if any(curves.values()):
        axes.legend(frameon=False, loc="center left")
    return svg(axes)


def _bars(axes: Axes, names: Sequence[str], groups: Bars) -> None:
    width = 0.8 / len(groups)
    for index, (label, values) in enumerate(groups.items()):
        at = [place + (index - (len(groups) - 1) / 2) * width for place in range(len(names))]
        heights = [value or 0.0 for value in values]
        bars = axes.bar(at, heights, width * 0.92, label=label, color=COLOURS[index])
        texts = ["" if value is None else f"{value:.1%}" for value in values]
        axes.bar_label(bars, texts, fontsize=8, padding=2)
    axes.set_xticks(range(len(names)), names)
    axes.legend(frameon=False, fontsize=8, ncols=len(groups), loc="upper right")
