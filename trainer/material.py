"""What a run learns from and is measured on: the log's rows, checked and divided."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from trainer.config import SHARED_VOCABULARY, TrainerConfig
from trainer.dataset import Dataset, Ints, answered, from_table, split
from trainer.entries import fit_vocabulary, words_only
from trainer.errors import DatasetError
from trainer.retokenizer import Retokenized, Retokenizer
from trainer.student import tokenizer_folder


@dataclass(frozen=True, slots=True)
class Material:
    """Rows of the log.

    Attributes:
        dataset: All of them.
        train_rows: Examples to learn from.
        heldout_rows: Examples to measure on, of other prompts.
        num_flagged: Rows, held-out ones among them, whose tokens alone count.
        retokenized: How they came into the student's own tokens; None if those are the teacher's.
    """

    dataset: Dataset
    train_rows: Ints
    heldout_rows: Ints
    num_flagged: int
    retokenized: Retokenized | None = None

    @classmethod
    def read(cls, config: TrainerConfig, table: pa.Table, report: Callable[[str], None]) -> Self:
        """Check the rows against the teacher, and hold some prompts out.

        Args:
            config: Of the run.
            table: Rows of the log's ``examples`` or ``answers`` view, with
                ``trainer.dataset.COLUMNS`` and, of the latter, ``flags``; for a student with a
                tokenizer of its own ``request`` too.
            report: Called with a few words before what may be slow.

        Raises:
            DatasetError: If the rows cannot be used.
            ModelError: If the student's tokenizer cannot be.
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
        sides = split(dataset, config.heldout_fraction, config.duplicates)
        material = cls(dataset, *sides, num_flagged)
        tokenizer = tokenizer_folder(config)
        if tokenizer == config.teacher:
            return material
        report("writing the answers in the student's tokens")
        requests = answered(table)["request"].to_pylist()
        retokenizer = Retokenizer.of(config.teacher, tokenizer)
        written = material._in_tokens_of(retokenizer, requests)
        if config.loss != SHARED_VOCABULARY or written.retokenized is None:
            return written
        report("experimental: matching the vocabularies of teacher and student")
        # Held-out rows stay words, so that no figure claims to be KL to the teacher.
        pair = (dataset, written.dataset)
        mixed, matched = retokenizer.with_distributions(*pair, written.train_rows)
        counts = replace(written.retokenized, matched_tokens=matched)
        return replace(written, dataset=mixed, retokenized=counts)

    def _in_tokens_of(self, retokenizer: Retokenizer, requests: Sequence[str]) -> Self:
        """The same rows, less those that cannot be written; what is held out stays so."""
        dataset, is_kept, counts = retokenizer.retokenized(self.dataset, requests)
        train_rows, heldout_rows = (
            rows[is_kept[rows]] for rows in (self.train_rows, self.heldout_rows)
        )
        if not len(train_rows) or not len(heldout_rows):
            raise DatasetError(
                f"of {len(dataset)} answers the student's tokenizer cannot write {counts.left_out} "
                f"as they are, which leaves {len(train_rows)} to train on and {len(heldout_rows)} "
                "held out: choose another student"
            )
        return replace(
            self,
            dataset=dataset,
            train_rows=train_rows,
            heldout_rows=heldout_rows,
            retokenized=counts,
        )

    def fitted(self, student: PreTrainedModel) -> Self:
        """The rows in a student's vocabulary.

        Raises:
            DatasetError: If it has no position for one, or no token for what was said.
        """
        context = student.config.max_position_embeddings
        used = np.concatenate([self.train_rows, self.heldout_rows])
        longest = int(self.dataset.lengths[used].max())
        if longest > context:
            is_own = self.retokenized is not None
            tokens = "of the student's own tokens" if is_own else "tokens"
            beside = ", or fewer: it counts the teacher's" if is_own else ""
            raise DatasetError(
                f"the longest example has {longest} {tokens}, the student takes {context}: leave "
                "long ones out with `where`, such as "
                f'where = "len(prompt_ids) + len(completion_ids) <= {context}"{beside}'
            )
        return replace(self, dataset=fit_vocabulary(self.dataset, student.config.vocab_size))
