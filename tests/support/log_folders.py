"""Spools and logs with rows in them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from capture.commit import Committer
from capture.config import CaptureConfig
from capture.rows import ExchangeRow, LogitRow, encode_exchanges, encode_logits
from capture.writer import Spool, SpoolLimits
from tests.support.log_rows import exchange_row, logit_row


def config_in(folder: Path) -> CaptureConfig:
    """A configuration with both folders inside one."""
    return CaptureConfig(log=folder / "log", spool=folder / "spool", commit_seconds=0.01)


def folder_of(config: CaptureConfig) -> Path:
    """Folder of a log that is on this machine's disk."""
    assert isinstance(config.log, Path)
    return config.log


def spool_logits(config: CaptureConfig, *rows: LogitRow) -> None:
    """Bring rows into a closed segment, as a writer of its own that ends well."""
    spool = Spool(config.spool, "logits", encode_logits, limits=SpoolLimits())
    for row in rows:
        spool.account.start()
        spool.offer(row, row.num_bytes)
    spool.close()


def spool_exchanges(config: CaptureConfig, *rows: ExchangeRow) -> None:
    """Bring rows into a closed segment, as a writer of its own that ends well."""
    spool = Spool(config.spool, "exchanges", encode_exchanges, limits=SpoolLimits())
    for row in rows:
        spool.account.start()
        spool.offer(row, 1000)
    spool.close()


def filled(
    folder: Path, exchanges: Sequence[ExchangeRow] = (), logits: Sequence[LogitRow] = ()
) -> CaptureConfig:
    """A log that holds these rows."""
    config = config_in(folder)
    if exchanges:
        spool_exchanges(config, *exchanges)
    if logits:
        spool_logits(config, *logits)
    Committer(config).commit()
    return config


def ids_on_disk(config: CaptureConfig) -> set[str]:
    """Exchange ids in any Parquet file, whether a version counts it or not."""
    return {
        name
        for path in folder_of(config).glob("*/day=*/*.parquet")
        for name in pq.read_table(path, columns=["exchange_id"], partitioning=None)[
            "exchange_id"
        ].to_pylist()
    }


def scattered(folder: Path) -> CaptureConfig:
    """Three exchanges of two days, every one in a file of its own."""
    config = config_in(folder)
    for name, day in (("a", "2026-11-23"), ("b", "2026-11-23"), ("c", "2026-11-24")):
        spool_exchanges(config, exchange_row(name, day=day, tenant=name))
        spool_logits(config, logit_row(name, day=day))
        Committer(config).commit()
    return config
