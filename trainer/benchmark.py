"""A task of EleutherAI's lm-evaluation-harness as the metric that weights are chosen by."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from capture.errors import ConfigError
from trainer.errors import MetricError

BATCH = 32  # requests at a time


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A task with documents of its own, which have nothing to do with the log.

    Attributes:
        name: Of the task.
        tasks: The harness's manager that knows it.
        tokenizer: The student's.
        limit: Most documents of it.
    """

    name: str
    tasks: Any
    tokenizer: Tokenizer
    limit: int

    @classmethod
    def of(cls, place: Path, folder: Path, limit: int) -> Self:
        """Find a task.

        Args:
            place: The folder with the task's YAML file, and the task's name as a file in it.
            folder: With the student's tokenizer.
            limit: Most documents of the task.

        Raises:
            ConfigError: If the harness is not installed, or knows no such task.
        """
        if importlib.util.find_spec("lm_eval") is None:
            raise ConfigError(
                f"[trainer].metric is 'lm_eval:{place.name}', but lm-evaluation-harness is not "
                "installed: pip install lm-eval, or name your own function as 'file.py:function'"
            )
        manager = importlib.import_module("lm_eval.tasks").TaskManager
        tasks = manager(include_path=str(place.parent), include_defaults=False)
        if place.name not in tasks.all_tasks:
            raise ConfigError(
                f"[trainer].metric is 'lm_eval:{place.name}': no YAML file in {place.parent} or "
                f"below it says 'task: {place.name}'"
            )
        return cls(place.name, tasks, AutoTokenizer.from_pretrained(folder), limit)

    def measure(self, student: PreTrainedModel) -> tuple[float, int]:
        """The task's first metric, and how many documents it was taken over.

        Raises:
            MetricError: If that is no number from 0 to 1.
        """
        harness = importlib.import_module("lm_eval")
        models = importlib.import_module("lm_eval.models.huggingface")
        found = harness.simple_evaluate(
            model=models.HFLM(pretrained=student, tokenizer=self.tokenizer, batch_size=BATCH),
            tasks=[self.name],
            task_manager=self.tasks,
            limit=self.limit,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=None,  # the run's own seeds stay as they are
            numpy_random_seed=None,
            torch_random_seed=None,
        )
        figures = found["results"][self.name]
        value = first_metric(figures)
        if value is None or not 0 <= value <= 1:
            raise MetricError(
                f"lm_eval:{self.name} gave {figures!r}, expected a first metric from 0 to 1"
            )
        return value, int(found["n-samples"][self.name]["effective"])


def first_metric(figures: dict[str, Any]) -> float | None:
    """The first figure that the harness names as ``metric,filter``, errors left out."""
    for name, value in figures.items():
        metric, comma, _ = name.partition(",")
        if comma and not metric.endswith("_stderr"):
            return float(value)
    return None
