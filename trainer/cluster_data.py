"""Looking for duplicates on a Ray cluster: no machine holds more of the log's tokens than a block.

The rows found are those of ``trainer.duplicates.distinct``. What one machine holds is a few dozen
bytes of each row, to know it by, and the marks that rows have in common.
"""

from functools import partial

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
from pyarrow.dataset import FileSystemDataset
from ray.exceptions import RayError

from capture.errors import LogError
from capture.log import RANKED, Log, Snapshot, View, matching
from trainer.config import TrainerConfig
from trainer.dataset import Flags, Ragged, check_teacher, heldout_flags
from trainer.duplicates import (
    behind,
    common_beginning,
    marks_of,
    num_marks,
    probed,
    texts_of,
    unseen,
)
from trainer.errors import ScaleError

TEXT = ("prompt_ids", "completion_ids")
COLUMNS = list(dict.fromkeys([*RANKED, *TEXT]))
MARKS_PER_PART = 1 << 20  # some 50 MB
MARKS = pa.schema(
    [
        ("mark", pa.binary()),
        ("number", pa.int64()),  # of the row, in the snapshot
        ("is_heldout", pa.bool_()),
        ("part", pa.int32()),  # equal marks are in the same
    ]
)


def distinct_rows(config: TrainerConfig, snapshot: Snapshot) -> Flags:
    """Say which rows of a snapshot to keep, as ``trainer.duplicates.distinct`` does.

    Raises:
        LogError: If the rows are not those of the snapshot, or not found in its files.
        DatasetError: If there is none, or they are not all the teacher's.
        ScaleError: If the cluster fails.
    """
    log = Log(config.log)
    check_teacher(log.read(snapshot, ("model_revision", "tokenizer_hash")), config.teacher)
    files, ranks = log.files(snapshot), log.ranks(snapshot)
    asked = log.read(snapshot, ("prompt_ids",), probed(snapshot.num_rows, config.duplicates))
    beginning = common_beginning(Ragged.from_column(asked["prompt_ids"]))
    try:
        shared = _shared_marks(config, snapshot, beginning, files, ranks)
    except RayError as error:
        raise ScaleError(f"the cluster failed while it looked for duplicates: {error}") from error
    return _kept(shared, snapshot.num_rows)


def _shared_marks(
    config: TrainerConfig,
    snapshot: Snapshot,
    beginning: npt.NDArray[np.generic],
    files: FileSystemDataset,
    ranks: pa.Table,
) -> pa.Table:
    """Every mark that several rows have, once for each of them."""
    expected = snapshot.num_rows * num_marks(config.duplicates)
    num_parts = 1 + expected // MARKS_PER_PART
    marks = (
        ray.data.read_parquet(files.files, filesystem=files.filesystem, partitioning=None)
        .select_columns(COLUMNS)
        .map_batches(
            partial(_marks, config, snapshot.view, beginning, ray.put(ranks), num_parts),
            batch_format="pyarrow",
            batch_size=None,
        )
        .materialize()
    )
    found = marks.count()
    if found < expected:
        raise LogError(
            f"{config.log}: the cluster found {found} marks of the snapshot's rows, expected "
            f"{expected}: let every machine see the same log and have the same packages"
        )
    parts = marks.groupby("part", num_partitions=num_parts)
    shared = parts.map_groups(_shared, batch_format="pyarrow")
    return pa.concat_tables([MARKS.empty_table(), *ray.get(shared.to_arrow_refs())])


def _marks(
    config: TrainerConfig,
    view: View,
    beginning: npt.NDArray[np.generic],
    ranks: "ray.ObjectRef",
    num_parts: int,
    rows: pa.Table,
) -> pa.Table:
    """Marks of those rows of a block that are the snapshot's."""
    found = matching(rows, ray.get(ranks), view, TEXT)
    prompt_ids, completion_ids = texts_of(found)
    marks = [
        marks_of(behind(beginning, prompt_ids.row(row)), completion_ids.row(row), config.duplicates)
        for row in range(found.num_rows)
    ]
    times = num_marks(config.duplicates)
    flat = [mark for of_row in marks for mark in of_row]
    is_heldout = heldout_flags(prompt_ids, config.heldout_fraction)
    columns = (
        flat,
        np.repeat(np.asarray(found["number"]), times),
        np.repeat(is_heldout, times),
        [int.from_bytes(mark[:4]) % num_parts for mark in flat],
    )
    return pa.table(dict(zip(MARKS.names, columns, strict=True)), schema=MARKS)


def _shared(marks: pa.Table) -> pa.Table:
    """Marks, of all in a part, that several rows have."""
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("marks", marks)
        sql = "select * from marks qualify count(*) over (partition by mark) > 1"
        return connection.sql(sql).to_arrow_table().cast(MARKS)


def _kept(shared: pa.Table, num_rows: int) -> Flags:
    """Which rows are held out, or the first of their kind."""
    is_kept = np.ones(num_rows, dtype=bool)
    heldout = shared.filter(shared["is_heldout"])
    others = shared.filter(pa.compute.invert(shared["is_heldout"]))
    rows = others.group_by("number").aggregate([("mark", "list")]).sort_by("number")
    numbers, marks = rows["number"].to_numpy(), rows["mark_list"]
    is_kept[numbers] = False
    seen = set(heldout["mark"].to_pylist())
    for row in unseen(((number, marks[i].as_py()) for i, number in enumerate(numbers)), seen):
        is_kept[row] = True
    return is_kept
