"""Examples of other programs into the log: through a spool and the committer, as every row.

What no format tells is left open: tenant, key, deployment, tool calls, timings, engine's flags.
An exchange or choice that the log holds already is skipped, so an import can be repeated.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from capture.axolotl import read_axolotl
from capture.chat import read_chat
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.delta import store_errors
from capture.demands import checked
from capture.distillkit import read_distillkit
from capture.errors import LogError
from capture.examples import ARRAYS, ROWS_PER_BATCH, Row
from capture.export import Format
from capture.lines import read_examples
from capture.log import Log, query
from capture.rows import ExchangeRow, LogitRow, encode_exchanges, encode_logits
from capture.schema import LOGITS
from capture.writer import Spool, SpoolLimits

T = TypeVar("T")
SOURCE = "import"
UNKNOWN = "unknown"
EXCHANGE_BYTES = 4096  # rough, for the spool's bound
WAIT_BYTES = 8 * 1024 * 1024
WAIT_SECONDS = 60.0


@dataclass(slots=True)
class Imported:
    """What an import did.

    Attributes:
        exchanges: Exchanges added.
        choices: Distributions of choices added.
        skipped: Choices the log held already.
    """

    exchanges: int = 0
    choices: int = 0
    skipped: int = 0


def import_examples(
    config: CaptureConfig, path: Path, file_format: Format, on_rows: Callable[[int], None]
) -> Imported:
    """Bring a file's examples into the log and commit them.

    Args:
        config: Names the log and the spool.
        path: The file, or DistillKit's folder.
        file_format: Its format.
        on_rows: Told the number of rows of each part that is in the spool.

    Raises:
        LogError: If the file cannot be read, the log cannot hold one of its rows, or the store
            fails; what came before is in the log after the next commit, and importing again goes
            on behind it.
    """
    Committer(config).commit()
    with Log(config.log).connect() as connection:
        known = query(connection, "select exchange_id from exchanges")["exchange_id"]
        pairs = query(connection, "select exchange_id, choice from logits").to_pylist()
    intake = _Intake(
        config, set(known.to_pylist()), {(pair["exchange_id"], pair["choice"]) for pair in pairs}
    )
    try:
        with store_errors(path):
            for rows in _parts(checked(path, _read(path, file_format))):
                intake.take(rows)
                on_rows(len(rows))
    finally:
        intake.close()
    Committer(config).commit()
    intake.check()
    return intake.imported


def _read(path: Path, file_format: Format) -> Iterator[Row]:
    if file_format is Format.PARQUET:
        return _read_parquet(path)
    readers = {
        Format.JSONL: read_examples,
        Format.CHAT: read_chat,
        Format.AXOLOTL: read_axolotl,
        Format.DISTILLKIT: read_distillkit,
    }
    return readers[file_format](path)


def _read_parquet(path: Path) -> Iterator[Row]:
    for batch in pq.ParquetFile(path).iter_batches(ROWS_PER_BATCH):
        yield from batch.to_pylist()


def _parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Some rows at a time, choices of an exchange that follow each other never apart."""
    part: list[Row] = []
    for _, choices in itertools.groupby(rows, lambda row: row["exchange_id"]):
        part += choices
        if len(part) >= ROWS_PER_BATCH:
            yield part
            part = []
    if part:
        yield part


class _Intake:
    """Two spools and what the log holds already."""

    def __init__(
        self, config: CaptureConfig, exchanges: set[str], choices: set[tuple[str, int]]
    ) -> None:
        limits = SpoolLimits(segment_bytes=config.segment_bytes)
        self._exchanges = Spool(config.spool, "exchanges", encode_exchanges, limits=limits)
        self._logits = Spool(config.spool, "logits", encode_logits, limits=limits)
        self._known_exchanges, self._known_choices = exchanges, choices
        self.imported = Imported()

    def take(self, rows: Sequence[Row]) -> None:
        """Bring rows into the spool; distributions first, so that no exchange waits for them."""
        logits = []
        for row in rows:
            key = (row["exchange_id"], row.get("choice") or 0)
            if key in self._known_choices:
                self.imported.skipped += 1
            elif row.get("completion_ids"):
                self._known_choices.add(key)
                logits.append(_logit_row(row))
        exchanges = []
        for name, choices in _by_exchange(rows).items():
            if name not in self._known_exchanges:
                self._known_exchanges.add(name)
                exchanges.append(_exchange_row(choices))
        offer_all(self._logits, logits, lambda row: row.num_bytes)
        offer_all(self._exchanges, exchanges, lambda _: EXCHANGE_BYTES)
        self.imported.choices += len(logits)
        self.imported.exchanges += len(exchanges)

    def close(self) -> None:
        """Write what was taken."""
        self._logits.close()
        self._exchanges.close()

    def check(self) -> None:
        """See that nothing was dropped.

        Raises:
            LogError: If the disk refused some of it.
        """
        dropped = self._logits.account.num_dropped + self._exchanges.account.num_dropped
        if dropped:
            raise LogError(
                f"{dropped} rows did not reach the spool: see to its disk and import again"
            )


def _by_exchange(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row["exchange_id"], {})[row.get("choice") or 0] = row
    return found


def offer_all(spool: Spool[T], rows: Sequence[T], size: Callable[[T], int]) -> None:
    """Hand rows to a spool, never more than it takes at once."""
    waiting = 0
    for number, row in enumerate(rows, 1):
        waiting += size(row)
        is_full = waiting > WAIT_BYTES or number == len(rows)
        written = threading.Event()
        spool.account.start()
        spool.offer(row, size(row), written=written.set if is_full else None)
        if is_full:
            written.wait(WAIT_SECONDS)
            waiting = 0


def _exchange_row(choices: dict[int, Row]) -> ExchangeRow:
    """What is known of an exchange from its choices."""
    indices = range(max(choices) + 1)
    first = choices[min(choices)]
    started_at = first.get("started_at") or datetime.now(UTC)
    has_all = all(choices.get(index, {}).get("completion_ids") for index in indices)
    return ExchangeRow(
        exchange_id=first["exchange_id"],
        day=_day(first),
        started_at=started_at,
        route=first.get("route") or SOURCE,
        deployment=SOURCE,
        role=first.get("role") or "incumbent",
        model=first.get("model") or UNKNOWN,
        model_revision=first.get("model_revision"),
        tenant=None,
        key_id=None,
        endpoint=UNKNOWN,
        stream=False,
        request=first.get("request") or "{}",
        response_text=[choices.get(index, {}).get("response_text") or "" for index in indices],
        tool_calls=None,
        params=first.get("params") or "{}",
        finish_reason=[choices.get(index, {}).get("finish_reason") for index in indices],
        status="completed",
        http_status=None,
        error_type=None,
        prompt_tokens=len(first.get("prompt_ids") or ()) or None,
        completion_tokens=sum(len(row.get("completion_ids") or ()) for row in choices.values()),
        ttft_ms=None,
        duration_ms=0.0,
        capture=SOURCE if has_all else "off",
        pair_id=None,
    )


def _logit_row(row: Row) -> LogitRow:
    """An example's distributions; what they were cut at is known from them alone."""
    arrays: dict[str, Any] = {
        name: np.asarray(row[name], LOGITS.field(name).type.value_type.to_pandas_dtype())
        for name in ARRAYS
    }
    return LogitRow(
        exchange_id=row["exchange_id"],
        day=_day(row),
        choice=row.get("choice") or 0,
        source=SOURCE,
        model_revision=row.get("model_revision") or UNKNOWN,
        tokenizer_hash=row.get("tokenizer_hash") or UNKNOWN,
        **arrays,
        tail_draws=np.empty(0, np.int32),
        flags=0,
        k_max=int(arrays["topk_size"].max()),
        mass=0.0,
    )


def _day(row: Row) -> str:
    return row.get("day") or datetime.now(UTC).strftime("%Y-%m-%d")
