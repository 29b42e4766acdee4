"""A log of given rows, written as `retort serve` writes it, and read as the trainer reads it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from capture.commit import Committer
from capture.config import CaptureConfig
from capture.delta import DataFile, active_files, open_table
from capture.log import Log, query
from capture.revision import tokenizer_hash
from capture.rewrite import compact
from capture.rows import LogitRow, encode_exchanges, encode_logits
from capture.schema import LOGITS, TABLES
from capture.spool import SegmentWriter
from tests.support.log_folders import folder_of
from tests.support.log_rows import exchange_row
from trainer.dataset import COLUMNS, Dataset, from_table
from trainer.packing import collate, epoch_batches

ROWS_PER_BATCH = 512
BATCH_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Store:
    """A log and what writing it took.

    Attributes:
        folder: Of the log.
        teacher: A folder whose tokenizer the rows name.
        write_seconds: From rows to the committed table, fsyncs included, compaction not.
    """

    folder: Path
    teacher: Path
    write_seconds: float

    @classmethod
    def write(cls, rows: Sequence[LogitRow], home: Path) -> "Store":
        """Bring rows through spool and committer, then compact as a log in service is."""
        config = CaptureConfig(log=home / "log", spool=home / "spool")
        config.spool.mkdir(parents=True)
        teacher = _teacher(home)
        name = tokenizer_hash(teacher)
        rows = [
            replace(row, tokenizer_hash=name, model_revision="0123456789abcdef") for row in rows
        ]
        exchanges = SegmentWriter(config.spool, "exchanges", TABLES["exchanges"], "bench")
        names = sorted({row.exchange_id for row in rows})
        exchanges.append(encode_exchanges([exchange_row(name) for name in names]))
        exchanges.rotate()
        Committer(config).commit()
        started = time.perf_counter()
        logits = SegmentWriter(config.spool, "logits", LOGITS, "bench")
        for start in range(0, len(rows), ROWS_PER_BATCH):
            logits.append(encode_logits(rows[start : start + ROWS_PER_BATCH]))
        logits.rotate()
        Committer(config).commit()
        seconds = time.perf_counter() - started
        compact(config.log)
        return cls(folder_of(config), teacher, seconds)

    @property
    def files(self) -> list[DataFile]:
        """Files of the logits table."""
        table = open_table(self.folder, "logits")
        return [] if table is None else active_files(table)

    def read(self) -> Dataset:
        """Read every example as ``retort distill`` does."""
        log = Log(self.folder)
        return from_table(log.read(log.snapshot(), COLUMNS), self.teacher)

    def bytes_by_column(self) -> dict[str, int]:
        """Compressed bytes of each column."""
        sizes: dict[str, int] = {}
        for file in self.files:
            metadata = pq.read_metadata(self.folder / "logits" / file.path)
            for group in range(metadata.num_row_groups):
                for index in range(metadata.num_columns):
                    column = metadata.row_group(group).column(index)
                    name = column.path_in_schema.split(".")[0]
                    sizes[name] = sizes.get(name, 0) + column.total_compressed_size
        return sizes


def best_seconds(action: Callable[[], object], repeats: int) -> float:
    """Shortest of several runs."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def collate_all(dataset: Dataset) -> None:
    """Build every batch of one epoch."""
    for rows in epoch_batches(dataset.lengths, BATCH_TOKENS, (0, 0)):
        collate(dataset, rows, torch.device("cpu"))


def logged_rows(folder: Path) -> list[LogitRow]:
    """Rows of an existing log's examples, as they were captured."""
    with Log(folder).connect() as connection:
        table = query(
            connection,
            "select logits.* from logits join examples using (exchange_id, choice) "
            "where len(logits.completion_ids) = len(examples.completion_ids)",
        )
    return [
        LogitRow(**{name: _value(value) for name, value in zip(LOGITS.names, values, strict=True)})
        for batch in table.select(LOGITS.names).to_batches()
        for values in zip(*batch.columns, strict=True)
    ]


def _value(scalar: pa.Scalar) -> Any:
    return np.asarray(scalar.values) if isinstance(scalar, pa.ListScalar) else scalar.as_py()


def _teacher(home: Path) -> Path:
    """A folder with a tokenizer to compare with."""
    folder = home / "teacher"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder
