from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Ragged, from_table, is_heldout, split
from trainer.errors import DatasetError

prompts = st.lists(st.integers(0, 150_000), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("dataset") / "teacher")


@pytest.fixture(scope="module")
def table(teacher: Path) -> pa.Table:
    return answer(teacher, 12)


def with_value(table: pa.Table, column: str, values: list[str]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values))


def test_rows_come_back_as_they_were_logged(teacher: Path, table: pa.Table) -> None:
    dataset = from_table(table, teacher)
    assert len(dataset) == table.num_rows
    for name in ("prompt_ids", "completion_ids", "topk_size", "topk_ids", "tail_logprob"):
        ragged = getattr(dataset, name)
        assert [ragged.row(i).tolist() for i in range(len(dataset))] == table[name].to_pylist()


def test_a_sliced_table_in_several_chunks_reads_the_same(teacher: Path, table: pa.Table) -> None:
    pieces = pa.concat_tables([table.slice(2, 3), table.slice(7, 2)])
    dataset = from_table(pieces, teacher)
    expected = pieces["topk_ids"].to_pylist()
    assert [dataset.topk_ids.row(i).tolist() for i in range(5)] == expected


class LongColumn:
    """As a column of more than 2**31 entries, which Arrow cannot make one array of."""

    type = pa.list_(pa.int32())
    chunks = (
        pa.array([[1, 2], [], [3]], pa.list_(pa.int32())).slice(1),
        pa.array([[4, 5]], pa.list_(pa.int32())),
    )

    def combine_chunks(self) -> pa.Array:
        raise pa.ArrowInvalid("offset overflow while concatenating arrays")


def test_a_column_of_any_length_is_read_chunk_by_chunk() -> None:
    found = Ragged.from_column(LongColumn())

    assert found.offsets.dtype == np.int64
    assert [found.row(row).tolist() for row in range(3)] == [[], [3], [4, 5]]
    empty = Ragged.from_column(pa.chunked_array([], pa.list_(pa.int32())))
    assert empty.values.dtype == np.int32
    assert empty.offsets.tolist() == [0]


def test_an_empty_snapshot_is_refused(teacher: Path, table: pa.Table) -> None:
    with pytest.raises(DatasetError, match="no example"):
        from_table(table.slice(0, 0), teacher)


def test_rows_without_an_answer_are_left_out(teacher: Path, table: pa.Table) -> None:
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for name in ("completion_ids", "topk_size", "topk_ids", "topk_logprobs", "tail_logprob"):
        columns[name][0] = []
    assert len(from_table(pa.table(columns, schema=table.schema), teacher)) == 11


@pytest.mark.parametrize("column", ["model_revision", "tokenizer_hash"])
def test_rows_of_two_models_are_refused(teacher: Path, table: pa.Table, column: str) -> None:
    values = ["other", *table[column].to_pylist()[1:]]
    with pytest.raises(DatasetError, match=rf"mixes 2 values of {column}.*where"):
        from_table(with_value(table, column, values), teacher)


def test_rows_of_another_tokenizer_are_refused(teacher: Path, table: pa.Table) -> None:
    other = with_value(table, "tokenizer_hash", ["0123456789abcdef"] * table.num_rows)
    with pytest.raises(DatasetError, match="0123456789abcdef"):
        from_table(other, teacher)


@given(prompt=prompts, fraction=st.floats(0.01, 0.99))
def test_a_prompt_is_held_out_or_not_whatever_holds_its_ids(
    prompt: list[int], fraction: float
) -> None:
    sides = {
        is_heldout(prompt, fraction),
        is_heldout(np.array(prompt, dtype=np.int32), fraction),
        is_heldout(np.array(prompt, dtype=np.int64), fraction),
    }
    assert len(sides) == 1


@given(prompt=prompts, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_larger_fraction_holds_out_all_that_a_smaller_one_does(
    prompt: list[int], low: float, high: float
) -> None:
    low, high = sorted([low, high])
    assert is_heldout(prompt, low) <= is_heldout(prompt, high)


def test_about_the_given_fraction_is_held_out() -> None:
    held = [is_heldout([n, n + 1], 0.25) for n in range(4000)]
    assert 0.22 < np.mean(held) < 0.28


def test_equal_prompts_never_straddle_the_split(teacher: Path, table: pa.Table) -> None:
    repeated = pa.concat_tables([table, answer(teacher, 8, seed=1), table])
    dataset = from_table(repeated, teacher)
    train, heldout = split(dataset, 0.4)
    sides = [{tuple(dataset.prompt_ids.row(i).tolist()) for i in rows} for rows in (train, heldout)]
    assert sides[0].isdisjoint(sides[1])
    assert sorted([*train, *heldout]) == list(range(len(dataset)))


def test_duplicates_are_named_where_they_leave_too_few_rows(teacher: Path, table: pa.Table) -> None:
    dataset = from_table(table, teacher)

    with pytest.raises(DatasetError, match=r'or duplicates \("drop_near"\)'):
        split(dataset, 1.0, "drop_near")
    with pytest.raises(DatasetError, match=r"heldout_fraction \(1\.0\)$"):
        split(dataset, 1.0)


def test_a_split_with_an_empty_side_is_refused(teacher: Path, table: pa.Table) -> None:
    with pytest.raises(DatasetError, match="0 held out"):
        split(from_table(table.slice(0, 2), teacher), 1e-6)
