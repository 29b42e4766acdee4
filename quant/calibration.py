"""Which rows of the log a quantizer looks at: of every length, never those held out."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quant.errors import CalibrationError
from trainer.dataset import is_heldout

Tokens = npt.NDArray[np.int64]

LISTS = ("prompt_ids", "completion_ids")
COLUMNS = ("exchange_id", "choice", "tokenizer_hash", *LISTS)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a model is run on to see the inputs of its layers.

    Attributes:
        sequences: Token ids of prompt and completion, shortest first.
        digest: SHA-256 over the sorted ``(exchange_id, choice)`` of the rows.
    """

    sequences: tuple[Tokens, ...]
    digest: str


def heldout_mask(table: pa.Table, fraction: float) -> npt.NDArray[np.bool_]:
    """Say for each row whether its prompt was held out, by the rule of training."""
    prompts = table["prompt_ids"].to_numpy()
    return np.array([is_heldout(prompt, fraction) for prompt in prompts], dtype=bool)


def only_tokenizer(table: pa.Table, tokenizer_hash: str) -> pa.Table:
    """Keep the rows written with one tokenizer.

    Raises:
        CalibrationError: If there are none.
    """
    kept = table.filter(pa.compute.equal(table["tokenizer_hash"], tokenizer_hash))
    if not kept.num_rows:
        found = ", ".join(sorted(set(table["tokenizer_hash"].to_pylist()))) or "no examples at all"
        raise CalibrationError(
            f"no example with the model's tokenizer ({tokenizer_hash}) in the log, found {found}: "
            "capture traffic first, widen `where` in [quant], or quantize a model of this log"
        )
    return kept


def choose_rows(table: pa.Table, rows: int, max_length: int, seed: int) -> Calibration:
    """Draw one row out of each of ``rows`` groups of like length.

    Args:
        table: Rows of the log's ``examples`` view that may be looked at.
        rows: How many to draw; a smaller table is taken whole.
        max_length: Tokens kept of each row.
        seed: Of the draw.

    Raises:
        CalibrationError: If the table is empty.
    """
    if not table.num_rows:
        raise CalibrationError(
            "no example to calibrate on, all are held out: capture more traffic, or widen `where` "
            "in [quant]"
        )
    lists = [table[name].combine_chunks().value_lengths() for name in LISTS]
    lengths = np.sum([np.asarray(each, dtype=np.int64) for each in lists], axis=0)
    groups = np.array_split(np.argsort(lengths, kind="stable"), min(rows, len(lengths)))
    rng = np.random.default_rng(seed)
    chosen = table.take(pa.array([int(rng.choice(group)) for group in groups]))
    prompts, completions = (chosen[name].to_pylist() for name in LISTS)
    return Calibration(
        tuple(
            np.array([*prompt, *completion], dtype=np.int64)[:max_length]
            for prompt, completion in zip(prompts, completions, strict=True)
        ),
        _digest(chosen),
    )


def _digest(table: pa.Table) -> str:
    names, choices = table["exchange_id"].to_pylist(), table["choice"].to_pylist()
    keys = sorted(zip(names, choices, strict=True))
    lines = "".join(f"{name}\0{choice}\n" for name, choice in keys)
    return hashlib.sha256(lines.encode()).hexdigest()
