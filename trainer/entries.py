"""Other entries for a dataset's positions: fewer of them, or the generated token alone.

Shape suffixes: N completion tokens of all rows, E kept entries of all of them, R rows.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from trainer.dataset import Dataset, Flags, Ragged
from trainer.errors import DatasetError


def keep(dataset: Dataset, is_kept_E: Flags) -> Dataset:
    """Leave entries out: their mass joins the tail, as if the log had not kept them.

    Args:
        dataset: Whose entries they are.
        is_kept_E: In the order of ``dataset.topk_ids``.
    """
    position_E = _positions(dataset)
    logprobs_E = dataset.topk_logprobs.values.astype(np.float64)
    tail_N = dataset.tail_logprob.values.astype(np.float64)
    np.logaddexp.at(tail_N, position_E[~is_kept_E], logprobs_E[~is_kept_E])
    size_N = np.bincount(position_E[is_kept_E], minlength=len(tail_N))
    return _with_entries(
        replace(
            dataset, tail_logprob=replace(dataset.tail_logprob, values=tail_N.astype(np.float32))
        ),
        size_N,
        dataset.topk_ids.values[is_kept_E],
        dataset.topk_logprobs.values[is_kept_E],
    )


def fit_vocabulary(dataset: Dataset, size: int) -> Dataset:
    """Leave out what a student has no token for: the padding of its teacher's vocabulary.

    Args:
        dataset: Of a teacher with as many tokens or more.
        size: Of the student's vocabulary.

    Raises:
        DatasetError: If such a token was read or said, or at some position nothing else is kept.
    """
    said = max(int(ids.values.max()) for ids in (dataset.prompt_ids, dataset.completion_ids))
    if said >= size:
        raise DatasetError(
            f"the log holds token id {said}, the student's vocabulary ends at {size - 1}: choose a "
            "student with the teacher's vocabulary"
        )
    is_known_E = np.less(dataset.topk_ids.values, size)
    draws = dataset.tail_draws.values
    is_known_draw = np.less(draws, size)
    if is_known_E.all() and is_known_draw.all():
        return dataset
    fitted = keep(dataset, is_known_E)
    if not fitted.topk_size.values.all():
        raise DatasetError(
            f"at some position the teacher's entries are all past the student's vocabulary ({size} "
            "tokens): choose a student with the teacher's vocabulary"
        )
    known = np.where(is_known_draw, draws, -1)
    return replace(fitted, tail_draws=replace(dataset.tail_draws, values=known))


def words_only(dataset: Dataset, is_flagged_R: Flags) -> Dataset:
    """Take the generated token for all that the teacher said, in some rows.

    Every loss over it is the token's cross-entropy.

    Args:
        dataset: To change.
        is_flagged_R: Rows whose distributions are not the model's own.
    """
    if not is_flagged_R.any():
        return dataset
    is_flagged_N = np.repeat(is_flagged_R, dataset.completion_ids.lengths)
    position_E = _positions(dataset)
    is_first_E = np.diff(position_E, prepend=-1) > 0
    is_kept_E = is_first_E | ~is_flagged_N[position_E]
    is_label_E = is_flagged_N[position_E[is_kept_E]]
    ids_E = np.where(
        is_label_E,
        dataset.completion_ids.values[position_E[is_kept_E]],
        dataset.topk_ids.values[is_kept_E],
    )
    logprobs_E = np.where(is_label_E, 0.0, dataset.topk_logprobs.values[is_kept_E])
    tail_N = np.where(is_flagged_N, -np.inf, dataset.tail_logprob.values).astype(np.float32)
    draws_R = np.repeat(is_flagged_R, dataset.tail_draws.lengths)
    draws = np.where(draws_R, -1, dataset.tail_draws.values)
    return _with_entries(
        replace(
            dataset,
            tail_logprob=replace(dataset.tail_logprob, values=tail_N),
            tail_draws=replace(dataset.tail_draws, values=draws),
        ),
        np.where(is_flagged_N, 1, dataset.topk_size.values),
        ids_E,
        logprobs_E.astype(np.float32),
    )


def _positions(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Which completion token each entry belongs to."""
    size_N = dataset.topk_size.values.astype(np.int64)
    return np.repeat(np.arange(len(size_N)), size_N)


def _with_entries(
    dataset: Dataset,
    size_N: npt.NDArray[np.int64],
    ids_E: npt.NDArray[np.generic],
    logprobs_E: npt.NDArray[np.generic],
) -> Dataset:
    ends_N = np.append(0, np.cumsum(size_N))
    offsets = ends_N[dataset.completion_ids.offsets]
    return replace(
        dataset,
        topk_size=replace(dataset.topk_size, values=size_N.astype(np.int32)),
        topk_ids=Ragged(ids_E, offsets),
        topk_logprobs=Ragged(logprobs_E, offsets),
    )
