"""What a quantized model is examined on: held-out rows of its teacher, overall and by slice."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from quant.blocks import block_by_block
from quant.calibration import Sample, sample_of
from quant.errors import CompressionError
from quant.paged import Keep
from quant.screen import Screen
from trainer.dataset import Dataset, Ints, Ragged, answered, from_table
from trainer.evaluation import Quality, evaluate
from trainer.rarity import rarity

MAX_ROWS = 512
MIN_SLICE_ROWS = 20  # fewer say nothing of a slice
MIN_RIGHT = 20  # nor does what is kept of fewer right answers
TAIL = 0.2  # share of the rows that are called rare, or long
ALL = "all"
RATIO = "quality_ratio"

Figures = dict[str, float]
Measured = dict[str, Quality]  # by slice


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that neither training nor calibration has seen.

    Attributes:
        dataset: The rows with the teacher's distribution.
        sample: The same as token ids.
        slices: Row numbers by name: all, the common and the rare, the short and the long.
    """

    dataset: Dataset
    sample: Sample
    slices: dict[str, Ints]

    @classmethod
    def of(cls, table: pa.Table, model: Path, max_length: int) -> Self | None:
        """Take held-out rows of one teacher, each prompt once; None if there are none.

        Args:
            table: Rows of the log's ``examples`` view.
            model: Folder with the tokenizer.
            max_length: Tokens kept of each row where only token ids are looked at.
        """
        table = _first_of_each_prompt(answered(table)).slice(0, MAX_ROWS)
        if not table.num_rows:
            return None
        dataset = from_table(table, model)
        return cls(dataset, sample_of(table, max_length), slices_of(dataset))

    def measure(self, model: PreTrainedModel, batch_tokens: int, keep: Keep) -> Measured:
        """Compare a model with the teacher, slice by slice; its states are kept where told."""
        run_all = partial(block_by_block, model, keep)
        return {
            name: evaluate(model, self.dataset, rows, batch_tokens, run_all)
            for name, rows in self.slices.items()
        }


def _first_of_each_prompt(table: pa.Table) -> pa.Table:
    """A prompt's answers are much the same each time: many of them say no more than one."""
    prompts = Ragged.from_column(table["prompt_ids"])
    first: dict[bytes, int] = {}
    for row in range(table.num_rows):
        first.setdefault(prompts.row(row).tobytes(), row)
    return table.filter(pa.array(np.isin(np.arange(table.num_rows), [*first.values()])))


def slices_of(dataset: Dataset) -> dict[str, Ints]:
    """Return the row numbers of each slice that has ``MIN_SLICE_ROWS``, and of all rows."""
    rows = np.arange(len(dataset))
    found = {ALL: rows}
    orders = {
        ("common", "rare"): rarity(dataset.prompt_ids),
        ("short", "long"): dataset.lengths,
    }
    cut = round(len(rows) * (1 - TAIL))
    for (usual, unusual), values in orders.items():
        order = np.argsort(values, kind="stable")
        found |= {usual: np.sort(order[:cut]), unusual: np.sort(order[cut:])}
    return {n: each for n, each in found.items() if n == ALL or len(each) >= MIN_SLICE_ROWS}


def compared(before: Measured, after: Measured) -> Figures:
    """Figures of a bundle's manifest: what it is worth, and what it has kept.

    ``quality_ratio`` is the share of exactly right answers that it keeps, overall and by slice;
    of a slice that had fewer than ``MIN_RIGHT`` of them it is left out.
    """
    was = asdict(before[ALL])
    figures = {name: float(each) for name, each in asdict(after[ALL]).items() if each is not None}
    for name in ("kl_to_teacher_nats", "top1_agreement", "exact_match"):
        if was[name] is not None:
            figures[f"unquantized_{name}"] = float(was[name])
    for name, quality in after.items():
        if round(before[name].exact_match * before[name].rows) >= MIN_RIGHT:
            ratio = quality.exact_match / before[name].exact_match
            figures[RATIO if name == ALL else f"{RATIO}_{name}"] = ratio
    return figures


def worst_slice(figures: Figures) -> tuple[str, float] | None:
    """The slice that keeps least, overall counted as one; None where nothing was measured."""
    ratios = {name: value for name, value in figures.items() if name.startswith(RATIO)}
    if not ratios:
        return None
    name = min(ratios, key=ratios.__getitem__)
    return name.removeprefix(RATIO).removeprefix("_") or ALL, ratios[name]


def check_floor(
    figures: Figures, floor: float, scheme: str, screen: Screen, *, is_forced: bool
) -> None:
    """Refuse, or mark, what keeps too little; say where that cannot be told.

    Args:
        figures: Of ``compared``; empty where there are no held-out rows.
        floor: Share of the right answers to keep in the worst slice.
        scheme: Its name.
        screen: Gets the warning.
        is_forced: Mark it, do not refuse it.

    Raises:
        CompressionError: If it was not forced.
    """
    worst = worst_slice(figures)
    if worst is None and "rows" in figures:
        rows = round(figures["rows"])
        right = round(figures["unquantized_exact_match"] * rows)
        screen.warn(
            f"the model got {right} of {rows} held-out rows right, under {MIN_RIGHT}: what the "
            "bundle keeps of them cannot be told, `floor` in [quant] was not checked"
        )
    if worst is None or worst[1] >= floor:
        return
    if not is_forced:
        raise CompressionError(
            f"{scheme} keeps {worst[1]:.1%} of the model's right answers in the slice "
            f"{worst[0]!r}, `floor` in [quant] is {floor:.1%}: nothing was published; choose "
            "another scheme, or --force it"
        )
    figures["forced"] = 1.0
