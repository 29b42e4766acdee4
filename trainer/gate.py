"""Fewer of the tokens that a teacher is sure of: they teach little and cost as much as others.

Each one that stays counts for those that are left out, so the loss is the same on average.

Source:
    Choosing tokens by the teacher's entropy: arXiv:2602.01395; leaving out at random is ours.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from trainer.dataset import Dataset, Ints
from trainer.packing import Batch

SURE = 0.9999  # probability of the teacher's likeliest token


@dataclass(frozen=True, slots=True)
class Gate:
    """Which tokens stay.

    Attributes:
        share: Of the sure ones; above 0, and 1 for all.
        draw: Seed of the run and number of the step: the same tokens stay whenever it is taken.
    """

    share: float
    draw: tuple[int, int]

    def thinned(self, batch: Batch, dataset: Dataset, rows: Ints) -> Batch:
        """Leave positions out of a batch; the text is read whole all the same.

        Args:
            batch: Made of those rows.
            dataset: Of the run.
            rows: Numbers of its examples; a token's lot falls by them, whoever runs its row.
        """
        if self.share == 1:
            return batch
        lengths = dataset.completion_ids.lengths[rows]
        lots = [
            np.random.default_rng((*self.draw, int(row))).random(int(length))
            for row, length in zip(rows, lengths, strict=True)
        ]
        targets = batch.targets
        is_sure_N = (targets.topk_logprobs_NK[:, 0] > np.log(SURE)) & ~targets.is_words_only
        lot_N = torch.from_numpy(np.concatenate(lots)).to(is_sure_N.device)
        kept = (~is_sure_N | (lot_N < self.share)).nonzero()[:, 0]
        weights_N = torch.where(is_sure_N, 1 / self.share, 1.0)
        return replace(
            batch,
            predicts_N=batch.predicts_N[kept],
            targets=targets.part(kept),
            weights_N=weights_N[kept],
        )
