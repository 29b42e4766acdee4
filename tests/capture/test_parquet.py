from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from capture.frames import Frame, read_batch
from capture.parquet import GRID_NATS, round_logprobs, rounded, write_parquet
from capture.rows import encode_exchanges, encode_logits
from capture.schema import EXCHANGES
from tests.support.log_rows import exchange_row, logit_row

LOGPROBS = arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(-1e6, 0, width=32))


@given(values=LOGPROBS)
def test_rounding_moves_a_logprob_by_less_than_1e_4_nats(values: np.ndarray) -> None:
    moved = np.abs(round_logprobs(values).astype(np.float64) - values)
    assert (moved <= GRID_NATS / 2).all()
    assert GRID_NATS / 2 < 1e-4


@given(values=LOGPROBS)
def test_rounding_keeps_order_and_is_done_once(values: np.ndarray) -> None:
    once = round_logprobs(np.sort(values))
    assert (np.diff(once) >= 0).all()
    assert np.array_equal(round_logprobs(once), once)


def test_rounding_goes_to_the_nearest_and_on_ties_to_even() -> None:
    values = np.array([-1 - GRID_NATS * x for x in (0.49, 0.5, 0.51, 1.5)], np.float32)
    rounded_values = [-1.0, -1.0, -1 - GRID_NATS, -1 - 2 * GRID_NATS]
    assert round_logprobs(values).tolist() == rounded_values


def test_a_logprob_close_to_zero_becomes_a_plus_zero() -> None:
    assert not np.signbit(round_logprobs(np.array([-1e-6], np.float32))).any()


def test_what_is_not_finite_stays() -> None:
    values = np.array([-np.inf, np.inf, np.nan], np.float32)
    assert np.array_equal(round_logprobs(values), values, equal_nan=True)


def test_lists_keep_their_lengths_and_missing_ones_stay_missing() -> None:
    lists = pa.array([[0.1, 0.2], None, [], [0.3]], pa.list_(pa.float32()))
    table = rounded(pa.table({"tail_logprob": lists.slice(1)}))
    assert [None if row is None else len(row) for row in table["tail_logprob"].to_pylist()] == [
        None,
        0,
        1,
    ]


def test_ids_and_logprobs_are_split_into_byte_streams_without_a_dictionary(tmp_path: Path) -> None:
    table = pa.Table.from_batches([encode_logits([logit_row(seed=seed) for seed in range(50)])])
    size = write_parquet(table, tmp_path / "day" / "file.parquet")

    path = tmp_path / "day" / "file.parquet"
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    names = ("prompt_ids", "completion_ids", "topk_ids", "topk_logprobs", "tail_logprob")
    for name in names:
        column = columns[f"{name}.list.element"]
        assert "BYTE_STREAM_SPLIT" in column.encodings
        assert not column.has_dictionary_page
        assert column.compression == "ZSTD"
    assert columns["model_revision"].has_dictionary_page
    assert size == path.stat().st_size


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    exchanges = encode_exchanges([exchange_row("a"), exchange_row("b", texts=("x", "y"))])
    spooled = read_batch(Frame(memoryview(exchanges.payload), 0, 0), EXCHANGES)
    assert spooled is not None
    for batch in (
        encode_logits([logit_row("a"), logit_row("b", sizes=(1,))]),
        spooled,
    ):
        table = pa.Table.from_batches([batch])
        write_parquet(table, tmp_path / "file.parquet")
        assert pq.read_table(tmp_path / "file.parquet").cast(table.schema).equals(rounded(table))
