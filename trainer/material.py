"""What a run learns from and is measured on: the log's rows, checked and divided."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from trainer.config import TrainerConfig
from trainer.dataset import Dataset, Ints, answered, from_table, split
from trainer.duplicates import distinct
from trainer.entries import fit_vocabulary, words_only
from trainer.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Material:
    """Rows of the log.

    Attributes:
        dataset: All of them.
        train_rows: Examples to learn from.
        heldout_rows: Examples to measure on, of other prompts.
        num_dropped: Duplicates that are not trained on.
        num_flagged: Rows, held-out ones among them, whose tokens alone count.
    """

    dataset: Dataset
    train_rows: Ints
    heldout_rows: Ints
    num_dropped: int
    num_flagged: int

    @classmethod
    def read(cls, config: TrainerConfig, table: pa.Table, report: Callable[[str], None]) -> Self:
        """Check the rows against the teacher, and hold some prompts out.

        Args:
            config: Of the run.
            table: Rows of the log's ``examples`` or ``answers`` view, with
                ``trainer.dataset.COLUMNS`` and, of the latter, ``flags``.
            report: Called with a few words before what may be slow.

        Raises:
            DatasetError: If the rows cannot be used.
        """
        dataset, num_flagged = from_table(table, config.teacher), 0
        if config.loss == "forward_kl_draws" and not len(dataset.tail_draws.values):
            raise DatasetError(
                "the log holds no ids drawn from the tail: capture with [capture] tail_draws = 4, "
                'or train with loss = "forward_kl"'
            )
        if "flags" in table.column_names:
            is_flagged = np.asarray(answered(table)["flags"]) != 0
            dataset, num_flagged = words_only(dataset, is_flagged), int(is_flagged.sum())
        every_row, heldout_rows = split(dataset, config.heldout_fraction)
        report("looking for duplicates")
        train_rows = distinct(dataset, every_row, heldout_rows, config.duplicates)
        num_dropped = len(every_row) - len(train_rows)
        return cls(dataset, train_rows, heldout_rows, num_dropped, num_flagged)

    def fitted(self, student: PreTrainedModel) -> Self:
        """The rows in a student's vocabulary.

        Raises:
            DatasetError: If it has no position for one, or no token for what was said.
        """
        context, longest = student.config.max_position_embeddings, int(self.dataset.lengths.max())
        if longest > context:
            raise DatasetError(
                f"the longest example has {longest} tokens, the student takes {context}: leave "
                "long ones out with `where`, such as "
                f'where = "len(prompt_ids) + len(completion_ids) <= {context}"'
            )
        return replace(self, dataset=fit_vocabulary(self.dataset, student.config.vocab_size))
