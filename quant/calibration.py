"""Which rows of the log a quantizer looks at: usual and rare, short and long, never held out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import AutoTokenizer

from quant.config import QuantConfig
from quant.errors import CalibrationError
from quant.topics import topics
from trainer.dataset import Ragged, is_heldout
from trainer.rarity import Floats, rarity

Tokens = npt.NDArray[np.int64]

LISTS = ("prompt_ids", "completion_ids")
COLUMNS = ("exchange_id", "choice", "tokenizer_hash", *LISTS)
LENGTH_GROUPS = 8
POOL_ROWS = 16_384  # of a larger log so many are grouped by topic, which takes 8 kB each


@dataclass(frozen=True, slots=True)
class Sample:
    """Examples as a model reads them.

    Attributes:
        sequences: Token ids of prompt and completion, shortest first.
        prompt_lengths: How many of them are the prompt's.
    """

    sequences: tuple[Tokens, ...]
    prompt_lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a model is run on to see the inputs of its layers.

    Attributes:
        sample: The rows.
        digest: SHA-256 over the sorted ``(exchange_id, choice)`` of the rows.
    """

    sample: Sample
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
    """Draw one row out of each of ``rows`` groups of like topic, length and rarity.

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
    rng = np.random.default_rng(seed)
    prompts = Ragged.from_column(table["prompt_ids"])
    pool = table.take(pa.array(_drawn(_by_length(table, rarity(prompts)), POOL_ROWS, rng)))
    prompts = Ragged.from_column(pool["prompt_ids"])
    by_length = _by_length(pool, rarity(prompts))
    # Stable: within a topic rows stay in the order of length and rarity.
    order = by_length[np.argsort(topics(prompts, seed)[by_length], kind="stable")]
    chosen = pool.take(pa.array(_drawn(order, rows, rng)))
    return Calibration(sample_of(chosen, max_length), _digest(chosen))


def _by_length(table: pa.Table, rarity_R: Floats) -> Tokens:
    """Return the rows' numbers in eight groups of like length, within each by rarity."""
    lengths = _lengths(table)
    length_group = np.empty(len(lengths), np.int64)
    for number, members in enumerate(
        np.array_split(np.argsort(lengths, kind="stable"), LENGTH_GROUPS)
    ):
        length_group[members] = number
    order: Tokens = np.lexsort((rarity_R, length_group))
    return order


def _drawn(order: Tokens, rows: int, rng: np.random.Generator) -> list[int]:
    """Draw one of each of so many groups of neighbours, or all if there are no more."""
    return [int(rng.choice(group)) for group in np.array_split(order, min(rows, len(order)))]


def text_sample(path: Path, model: Path, config: QuantConfig) -> Calibration:
    """Cut a plain text into rows, as many as there would be of the log and as long as allowed.

    Raises:
        CalibrationError: If the file cannot be read or holds not one row.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"`calibration_text` in [quant]: {error}") from error
    ids = np.array(AutoTokenizer.from_pretrained(model)(text)["input_ids"], dtype=np.int64)
    rows = [ids[i : i + config.max_length] for i in range(0, len(ids), config.max_length)]
    rows = sorted(rows[: config.calibration_rows], key=len)
    if not rows or not len(rows[0]):
        raise CalibrationError(f"{path}: no text to calibrate on")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Calibration(Sample(tuple(rows), (1,) * len(rows)), digest)


def sample_of(table: pa.Table, max_length: int) -> Sample:
    """Take rows as a model reads them, at most ``max_length`` tokens of each.

    A longer one loses the beginning of its prompt, since what is measured are tokens of answers.
    Of an answer that is as long itself the first tokens stay, after the prompt's last one.
    """
    table = table.take(pa.array(np.argsort(_lengths(table), kind="stable")))
    sequences: list[Tokens] = []
    prompt_lengths: list[int] = []
    for prompt, completion in zip(*(table[name].to_pylist() for name in LISTS), strict=True):
        answer = completion[: max_length - min(len(prompt), 1)]
        end = prompt[max(0, len(prompt) + len(answer) - max_length) :]
        sequences.append(np.array([*end, *answer], dtype=np.int64))
        prompt_lengths.append(len(end))
    return Sample(tuple(sequences), tuple(prompt_lengths))


def _lengths(table: pa.Table) -> Tokens:
    lists = [Ragged.from_column(table[name]).lengths for name in LISTS]
    lengths: Tokens = np.sum(lists, axis=0)
    return lengths


def _digest(table: pa.Table) -> str:
    names, choices = table["exchange_id"].to_pylist(), table["choice"].to_pylist()
    keys = sorted(zip(names, choices, strict=True))
    lines = "".join(f"{name}\0{choice}\n" for name, choice in keys)
    return hashlib.sha256(lines.encode()).hexdigest()
