"""How well a student does its task: it answers held-out prompts, and a metric looks at them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from transformers import AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from trainer.answering import Sampling, end_ids, sample_answers
from trainer.benchmark import Benchmark
from trainer.dataset import Dataset, Ints
from trainer.metrics import EXACT_MATCH, LM_EVAL, Metric, open_metric

BATCH = 32  # prompts answered at a time


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts to answer and how the answers are looked at.

    Attributes:
        metric: Of prompt, answer and the teacher's answer.
        tokenizer: The student's.
        ends: Token ids that end an answer; maybe none.
    """

    metric: Metric
    tokenizer: Tokenizer
    ends: list[int]

    @classmethod
    def of(cls, metric: Metric, folder: Path) -> Self:
        """Take the tokenizer and what ends an answer from the folder of the teacher or student."""
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(metric, tokenizer, end_ids(folder, tokenizer))

    def measure(self, student: PreTrainedModel, dataset: Dataset, rows: Ints) -> float:
        """Mean of the metric over the student's greedy answers.

        Raises:
            MetricError: If a user's metric fails.
        """
        longest = int(dataset.completion_ids.lengths[rows].max())
        greedy = Sampling(0.0, longest)
        order = rows[np.argsort(dataset.prompt_ids.lengths[rows], kind="stable")]
        values = []
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            prompts = [dataset.prompt_ids.row(row).astype(np.int32) for row in batch]
            for row, said in zip(
                batch, sample_answers(student, self.ends, greedy, prompts), strict=True
            ):
                answer = (said.prompt_ids, said.completion_ids, dataset.completion_ids.row(row))
                values.append(self.metric(*(self._text(ids) for ids in answer)))
        return float(np.mean(values))

    def _text(self, ids: np.ndarray) -> str:
        text: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text


def open_task(metric: str, folder: Path, limit: int) -> Task | Benchmark | None:
    """What a student has to answer for a metric; None for the one that needs no answers.

    Args:
        metric: Its name.
        folder: With the student's tokenizer.
        limit: Most documents of a benchmark.

    Raises:
        ConfigError: If there is no such metric.
    """
    if metric.startswith(LM_EVAL):
        return Benchmark.of(Path(metric.removeprefix(LM_EVAL)), folder, limit)
    return None if metric == EXACT_MATCH else Task.of(open_metric(metric), folder)
