"""Spools and logs with rows in them."""

from collections.abc import Sequence
from pathlib import Path

from capture.commit import Committer
from capture.config import CaptureConfig
from capture.rows import ExchangeRow, LogitRow, encode_exchanges, encode_logits
from capture.writer import Spool, SpoolLimits


def config_in(folder: Path) -> CaptureConfig:
    """A configuration with both folders inside one."""
    return CaptureConfig(log=folder / "log", spool=folder / "spool", commit_seconds=0.01)


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
