import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Dataset, from_table
from trainer.packing import collate, endless_batches, epoch_batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return answer(make_tiny_model(tmp_path_factory.mktemp("packing") / "teacher"), 6)


@pytest.fixture(scope="module")
def dataset(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return from_table(table, make_tiny_model(tmp_path_factory.mktemp("packing") / "teacher"))


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch_tokens=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_an_epoch_holds_every_example_once_within_the_bound(
    lengths: list[int], batch_tokens: int, seed: int
) -> None:
    batches = epoch_batches(np.array(lengths), batch_tokens, (seed, 0))
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert padded <= batch_tokens or len(batch) == 1


def test_batches_repeat_by_seed_and_differ_between_epochs() -> None:
    lengths = np.arange(1, 40)
    first, again, other = (
        [batch.tolist() for batch in itertools.islice(endless_batches(lengths, 64, seed), 80)]
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    per_epoch = len(epoch_batches(lengths, 64, (3, 0)))
    assert first[:per_epoch] != first[per_epoch : 2 * per_epoch]


def test_the_loss_is_taken_where_completion_tokens_are_predicted_and_nowhere_else(
    dataset: Dataset, table: pa.Table
) -> None:
    rows = np.array([4, 0, 3])
    batch = collate(dataset, rows, CPU)
    width = batch.token_ids_BT.shape[1]
    flat = batch.token_ids_BT.flatten()
    # The position after each predicting one holds the token it predicts.
    assert torch.equal(flat[batch.predicts_N + 1], batch.targets.completion_ids_N)
    expected = [
        line * width + position
        for line, row in enumerate(rows.tolist())
        for position in range(
            len(table["prompt_ids"][row]) - 1,
            len(table["prompt_ids"][row]) + len(table["completion_ids"][row]) - 1,
        )
    ]
    assert batch.predicts_N.tolist() == expected
    assert batch.is_real_BT.sum(dim=1).tolist() == dataset.lengths[rows].tolist()


def test_targets_hold_each_position_s_entries_in_order(dataset: Dataset, table: pa.Table) -> None:
    targets = collate(dataset, np.array([5, 1]), CPU).targets
    line = 0
    for row in (5, 1):
        ids, logprobs = table["topk_ids"][row].as_py(), table["topk_logprobs"][row].as_py()
        start = 0
        for position, size in enumerate(table["topk_size"][row].as_py()):
            kept = slice(start, start + size)
            assert targets.topk_ids_NK[line, :size].tolist() == ids[kept]
            assert targets.topk_logprobs_NK[line, :size].tolist() == logprobs[kept]
            assert set(targets.topk_ids_NK[line, size:].tolist()) <= {ids[start]}
            assert bool((targets.topk_logprobs_NK[line, size:] == -torch.inf).all())
            tail = table["tail_logprob"][row].as_py()[position]
            assert targets.tail_logprob_N[line].item() == pytest.approx(tail)
            start, line = start + size, line + 1
    assert line == len(targets.completion_ids_N)


def test_little_of_a_batch_is_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(5.5, 1.0, 20_000).astype(int).clip(20, 4000)
    batches = epoch_batches(lengths, 32_768, (0, 0))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)

    assert 1 - lengths.sum() / padded < 0.02
