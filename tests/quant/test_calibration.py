import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quant import calibration
from quant.calibration import choose_rows, heldout_mask, only_tokenizer, sample_of
from quant.errors import CalibrationError
from trainer.dataset import is_heldout

PROMPTS = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=30)


def examples(prompts: list[list[int]], tokenizer: str = "t") -> pa.Table:
    count = len(prompts)
    return pa.table(
        {
            "exchange_id": [f"x{number}" for number in range(count)],
            "choice": pa.array([0] * count, pa.int16()),
            "tokenizer_hash": [tokenizer] * count,
            "prompt_ids": pa.array(prompts, pa.list_(pa.int32())),
            "completion_ids": pa.array([[99] * len(p) for p in prompts], pa.list_(pa.int32())),
        }
    )


@given(prompts=PROMPTS, fraction=st.floats(0, 1), rows=st.integers(1, 8), seed=st.integers(0, 9))
def test_no_held_out_prompt_is_calibrated_on(
    prompts: list[list[int]], fraction: float, rows: int, seed: int
) -> None:
    table = examples(prompts)
    allowed = table.filter(~heldout_mask(table, fraction))
    expected = [prompt for prompt in prompts if not is_heldout(prompt, fraction)]
    assume(expected)

    chosen = choose_rows(allowed, rows, 64, seed)

    seen = [sequence[: len(sequence) // 2].tolist() for sequence in chosen.sample.sequences]
    assert allowed["prompt_ids"].to_pylist() == expected
    assert len(seen) == min(rows, len(expected))
    assert all(prompt in expected for prompt in seen)


def test_a_log_that_is_all_held_out_cannot_be_calibrated_on() -> None:
    table = examples([[1], [2]])

    with pytest.raises(CalibrationError, match="all are held out"):
        choose_rows(table.filter(~heldout_mask(table, 1.0)), 1, 64, seed=0)


def test_every_length_is_drawn_from() -> None:
    chosen = choose_rows(examples([[7] * n for n in range(1, 97)]), 16, 1000, seed=0)

    lengths = np.array([len(sequence) for sequence in chosen.sample.sequences]) // 2
    assert ((lengths - 1) // 12).tolist() == [octile for octile in range(8) for _ in range(2)]
    assert list(chosen.sample.prompt_lengths) == lengths.tolist()


def test_the_rare_among_the_common_is_drawn() -> None:
    usual, unusual = [[1, 2, 3, 4]] * 90, [[n, n + 1, n + 2, n + 3] for n in range(10, 50, 4)]

    chosen = choose_rows(examples([*usual, *unusual]), 32, 64, seed=0)

    seen = [sequence[:4].tolist() for sequence in chosen.sample.sequences]
    assert sum(prompt in unusual for prompt in seen) >= 3


def test_every_topic_is_drawn_from() -> None:
    topics, each = 8, 40  # all of one length and as rare as one another
    prompts = [[10 * t + 1, 10 * t + 2, 10 * t + 3, 100 + n] for n in range(each) for t in range(8)]

    chosen = choose_rows(examples(prompts), topics, 64, seed=0)

    seen = [int(sequence[0]) // 10 for sequence in chosen.sample.sequences]
    assert sorted(seen) == list(range(topics))


def test_a_log_larger_than_what_is_grouped_gives_all_its_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "POOL_ROWS", 24)

    chosen = choose_rows(examples([[7] * n for n in range(1, 97)]), 8, 1000, seed=0)

    lengths = np.array([len(sequence) for sequence in chosen.sample.sequences]) // 2
    assert ((lengths - 1) // 12).tolist() == list(range(8))


def test_long_rows_are_cut() -> None:
    chosen = choose_rows(examples([[1, 2, 3]]), 4, 5, seed=0)

    assert [sequence.tolist() for sequence in chosen.sample.sequences] == [[2, 3, 99, 99, 99]]
    assert chosen.sample.prompt_lengths == (2,)


@given(prompt=st.integers(0, 12), completion=st.integers(0, 12), max_length=st.integers(2, 8))
def test_of_a_long_row_the_end_of_the_prompt_and_the_start_of_the_answer_stay(
    prompt: int, completion: int, max_length: int
) -> None:
    table = examples([[*range(prompt)]]).set_column(
        4, "completion_ids", pa.array([[*range(100, 100 + completion)]], pa.list_(pa.int32()))
    )

    sample = sample_of(table, max_length)

    (sequence,), (start,) = sample.sequences, sample.prompt_lengths
    assert len(sequence) == min(prompt + completion, max_length)
    assert sequence[:start].tolist() == [*range(prompt)][prompt - start :]
    assert sequence[start:].tolist() == [*range(100, 100 + completion)][: len(sequence) - start]
    assert (start > 0) == (prompt > 0)
    assert (len(sequence) > start) == (completion > 0)


def test_the_digest_names_the_rows_and_not_their_order() -> None:
    table = examples([[1], [2, 2], [3, 3, 3]])

    whole = choose_rows(table, 3, 8, seed=0)
    backwards = choose_rows(table.take(pa.array([2, 1, 0])), 3, 8, seed=1)
    fewer = choose_rows(table.slice(1), 3, 8, seed=0)

    assert whole.digest == backwards.digest
    assert whole.digest != fewer.digest


def test_rows_of_another_tokenizer_are_left_out() -> None:
    table = pa.concat_tables([examples([[1]], "a"), examples([[2], [3]], "b")])

    assert only_tokenizer(table, "b")["prompt_ids"].to_pylist() == [[2], [3]]
    with pytest.raises(CalibrationError, match=r"tokenizer \(c\) in the log, found a, b"):
        only_tokenizer(table, "c")
