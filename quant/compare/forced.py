"""How near a served model is to the teacher's logged distribution, at the teacher's own tokens.

An engine gives of each position its ``TOP`` likeliest tokens and the one that is there. A logged
entry that is not among them joins the tail, on both sides. Taking classes together only ever
lowers a KL, so what is measured is a lower bound of ``trainer.losses.forward_kl``; ``covered``
says how much of the teacher's mass on its entries it compares one by one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from capture.engine import Engine
from quant.compare.answers import complete, in_turn
from trainer.dataset import Dataset

TOP = 64  # as many entries as capture keeps by default
LEAST = 1e-9  # of a student's tail, of which an engine's float32 values say no more

Floats = npt.NDArray[np.float64]
Position = Mapping[str, Mapping[str, Any]]  # as vLLM has it: by token id, in text


@dataclass(frozen=True, slots=True)
class Forced:
    """Row by row means over an answer's positions; NaN where a model has no room for the row.

    Attributes:
        kl_nats: KL(teacher || model), a lower bound.
        agreement: Share of positions whose likeliest token is the teacher's.
        covered: Share of the mass of the teacher's entries that was compared one by one.
        tokens: Positions.
    """

    kl_nats: Floats
    agreement: Floats
    covered: Floats
    tokens: Floats

    def mean(self, name: str, rows: npt.ArrayLike | None = None) -> float:
        """Of one of the three over the tokens of some rows; NaN if none was measured."""
        picked = np.arange(len(self.tokens)) if rows is None else np.asarray(rows)
        values, tokens = getattr(self, name)[picked], self.tokens[picked]
        is_there = np.isfinite(values)
        total = float(tokens[is_there].sum())
        return float((values * tokens)[is_there].sum() / total) if total else float("nan")


def forced(
    engine: Engine, dataset: Dataset, top: int, context: int, advance: Callable[[], None]
) -> Forced:
    """Run a model over the logged answers.

    Args:
        engine: A ready one that gives ``top`` log-probabilities.
        dataset: The rows.
        top: At most the size of its vocabulary.
        context: Tokens that it takes.
        advance: Called after each row.

    Raises:
        EngineError: If it fails; with the end of its log.
    """

    def one(client: httpx.Client, row: int) -> tuple[float, float, float]:
        prompt = dataset.prompt_ids.row(row).tolist()
        ids = [*prompt, *dataset.completion_ids.row(row).tolist()]
        if len(ids) >= context:
            return (float("nan"),) * 3
        body = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": top}
        positions = complete(client, engine, body)["prompt_logprobs"][len(prompt) :]
        return compared(positions, *_logged(dataset, row))

    found = np.array(in_turn(engine, one, range(len(dataset)), advance), np.float64).reshape(-1, 3)
    kl_nats, agreement, covered = found.T
    tokens = dataset.completion_ids.lengths.astype(np.float64)
    return Forced(kl_nats, agreement, covered, tokens)


def compared(
    positions: Sequence[Position],
    sizes: Sequence[int],
    ids: Sequence[int],
    logprobs: Sequence[float],
    tails: Sequence[float],
) -> tuple[float, float, float]:
    """Return KL, agreement and covered mass of one answer, means over its positions.

    Args:
        positions: What the model says at each.
        sizes: Entries that the log has of each.
        ids: Those entries, position after position, likeliest first.
        logprobs: Their natural-log probabilities.
        tails: Natural log of the mass outside them, one per position.
    """
    ends = np.cumsum(sizes).tolist()
    sums = np.zeros(3)
    for position, size, end, tail in zip(positions, sizes, ends, tails, strict=True):
        entries = dict(zip(ids[end - size : end], logprobs[end - size : end], strict=True))
        said = {int(token): entry for token, entry in position.items()}
        best = min(said, key=lambda token: said[token]["rank"])
        kl, covered = _kl(entries, tail, {token: said[token]["logprob"] for token in said})
        sums += (kl, best == ids[end - size], covered)
    kl, agreement, covered = (sums / max(len(sizes), 1)).tolist()
    return kl, agreement, covered


def _kl(
    entries: Mapping[int, float], tail: float, said: Mapping[int, float]
) -> tuple[float, float]:
    """KL of one position, and the covered share; both sides sum to one."""
    teacher = {token: exp(logprob) for token, logprob in entries.items()}
    mass = sum(teacher.values())
    total = mass + exp(tail)
    shared = [token for token in teacher if token in said]
    student = {token: exp(said[token]) for token in shared}
    others = sum(exp(said[token]) for token in said if token not in student)
    rest = max(1.0 - sum(student.values()), others, LEAST)
    terms = [(teacher[token] / total, said[token]) for token in shared]
    left = max(1.0 - sum(p for p, _ in terms), 0.0)
    kl = sum(p * (log(p) - logprob) for p, logprob in terms if p > 0)
    kl += left * log(left / rest) if left > 0 else 0.0
    return max(kl, 0.0), sum(teacher[token] for token in shared) / mass


def _logged(dataset: Dataset, row: int) -> tuple[list[int], list[int], list[float], list[float]]:
    columns = (dataset.topk_size, dataset.topk_ids, dataset.topk_logprobs, dataset.tail_logprob)
    sizes, ids, logprobs, tails = (column.row(row).tolist() for column in columns)
    return sizes, ids, logprobs, tails
