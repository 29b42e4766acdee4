"""How well a student does its task: it answers held-out prompts, and a metric looks at them.

Shape suffixes: B prompts, T tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from trainer.dataset import Dataset, Ints
from trainer.metrics import EXACT_MATCH, Metric, open_metric

BATCH = 32  # prompts answered at a time


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts to answer and how the answers are looked at.

    Attributes:
        metric: Of prompt, answer and the teacher's answer.
        tokenizer: The teacher's, which is the student's.
        stops: Token ids that end an answer; maybe none.
    """

    metric: Metric
    tokenizer: Tokenizer
    stops: list[int]

    @classmethod
    def of(cls, metric: Metric, teacher: Path) -> Self:
        """Take the tokenizer and what ends an answer from the teacher's folder."""
        return cls(metric, AutoTokenizer.from_pretrained(teacher), _stops(teacher))

    def measure(self, student: PreTrainedModel, dataset: Dataset, rows: Ints) -> float:
        """Mean of the metric over the student's greedy answers.

        Raises:
            MetricError: If a user's metric fails.
        """
        most = int(dataset.completion_ids.lengths[rows].max())
        order = rows[np.argsort(dataset.prompt_ids.lengths[rows], kind="stable")]
        values = []
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            prompts = [dataset.prompt_ids.row(row) for row in batch]
            answers = self._answers(student, prompts, most)
            for row, prompt, answer in zip(batch, prompts, answers, strict=True):
                reference = self._text(dataset.completion_ids.row(row))
                values.append(self.metric(self._text(prompt), self._text(answer), reference))
        return float(np.mean(values))

    def _answers(
        self, student: PreTrainedModel, prompts: list[np.ndarray], most: int
    ) -> list[np.ndarray]:
        """Token ids of greedy answers, at most so many each, without what ends them."""
        width = max(map(len, prompts))
        ids_BT = np.zeros((len(prompts), width), dtype=np.int64)
        is_real_BT = np.zeros_like(ids_BT)
        for line, prompt in enumerate(prompts):  # padded on the left: the answers begin together
            ids_BT[line, width - len(prompt) :] = prompt
            is_real_BT[line, width - len(prompt) :] = 1
        with torch.inference_mode():
            said_BT = student.generate(
                torch.from_numpy(ids_BT).to(student.device),
                attention_mask=torch.from_numpy(is_real_BT).to(student.device),
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=self.stops or None,
                pad_token_id=self.stops[0] if self.stops else 0,
            )
        return [_until(ids, self.stops) for ids in said_BT[:, width:].cpu().numpy()]

    def _text(self, ids: np.ndarray) -> str:
        text: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text


def open_task(metric: str, teacher: Path) -> Task | None:
    """What a student has to answer for a metric; None for the one that needs no answers.

    Raises:
        ConfigError: If there is no such metric.
    """
    return None if metric == EXACT_MATCH else Task.of(open_metric(metric), teacher)


def _stops(teacher: Path) -> list[int]:
    has_own = (teacher / "generation_config.json").is_file()
    source = GenerationConfig if has_own else AutoConfig
    found = source.from_pretrained(teacher).eos_token_id
    if found is None:
        return []
    return [found] if isinstance(found, int) else list(found)


def _until(ids: np.ndarray, stops: list[int]) -> np.ndarray:
    ends = np.flatnonzero(np.isin(ids, stops))
    return ids[: ends[0]] if len(ends) else ids
