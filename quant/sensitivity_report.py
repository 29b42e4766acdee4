"""What a search of sensitivities found, as JSON and as a page."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from capture.plots import COLOURS, axes_of, svg
from quant.mixing import Sensitivity
from quant.sensitivity import AS_IT_IS
from trainer.pages import render

TEMPLATE = Path(__file__).with_name("sensitivity.html.j2")
Document = dict[str, Any]


def document(found: Sensitivity, budget: float) -> Document:
    """The content of ``sensitivity.json``: every look, and the choice under a budget.

    Raises:
        CompressionError: If no choice is within the budget.
    """
    choice = found.choose(budget)
    rows = [
        {**asdict(each), "chosen": choice.names[each.group] == each.format}
        for each in found.findings
    ]
    return {
        "budget": budget,
        "size_ratio": choice.size / found.stored_bytes,
        "kl_nats_sum": choice.loss,
        "rows": rows,
    }


def write_page(content: Mapping[str, Any], path: Path) -> None:
    """Write the page; it needs nothing beside it."""
    render(TEMPLATE, path, content=content, figure=_figure(content["rows"]))


def _figure(rows: list[Document]) -> str:
    """KL of every group, a mark per format."""
    axes = axes_of("KL to the unquantized model with only this group rounded", "nats per token")
    groups = list(dict.fromkeys(row["group"] for row in rows))
    formats = list(dict.fromkeys(row["format"] for row in rows if row["format"] != AS_IT_IS))
    for colour, name in zip(COLOURS, formats, strict=False):
        seen = [row for row in rows if row["format"] == name]
        places = [groups.index(row["group"]) for row in seen]
        axes.plot(
            places, [max(row["kl_nats"], 1e-9) for row in seen], "o", color=colour, label=name
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(groups)), groups, rotation=90, fontsize=6)
    axes.legend(frameon=False)
    return svg(axes)
