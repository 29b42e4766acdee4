"""What a student is measured with on held-out rows, before, along and after its training."""

from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from trainer.benchmark import Benchmark
from trainer.dataset import Dataset, Ints
from trainer.evaluation import Quality, evaluate
from trainer.task import Task


@dataclass(frozen=True, slots=True)
class Examination:
    """How rows are measured.

    Attributes:
        dataset: Of the run.
        batch_tokens: Padded tokens at a time.
        task: What the student has to answer; None where one pass over the teacher's answers tells.
        task_rows: Most rows of it; answering takes far longer than reading.
    """

    dataset: Dataset
    batch_tokens: int
    task: Task | Benchmark | None
    task_rows: int

    def of(self, student: PreTrainedModel, rows: Ints) -> Quality:
        """Measure a student in the precision of its weights.

        Raises:
            MetricError: If a user's metric fails.
        """
        quality = evaluate(student, self.dataset, rows, self.batch_tokens)
        if self.task is None:
            return quality
        if isinstance(self.task, Benchmark):
            metric, documents = self.task.measure(student)
            return replace(quality, metric=metric, metric_rows=documents)
        asked = rows[: self.task_rows]
        metric = self.task.measure(student, self.dataset, asked)
        return replace(quality, metric=metric, metric_rows=len(asked))
