"""Erasure: exchanges, their shadows and distributions leave log and spool for good."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from capture.commit import Committer
from capture.config import CaptureConfig
from capture.delta import Change, active_files, open_table, replace, retry_conflicts, vacuum
from capture.errors import LogError
from capture.forgotten import forget, log_lock
from capture.frames import Frame, walk, whole_batches
from capture.intent import COMMIT_LOCK
from capture.lineage import Origins, find_origins
from capture.locks import locked
from capture.log import Log
from capture.removal import purge, without
from capture.repair import Repairer
from capture.schema import TABLES
from capture.selection import Selection
from capture.spool import BAD, NUM_HEADS, OPEN, segments
from capture.store import LogFolder

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 30.0  # beyond the age at which a writer closes its segment
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Erased:
    """What was erased, and what was made of it before.

    Attributes:
        rows: Rows erased, by table.
        files_before: Files that held any of them.
        files_after: Files that replace those.
        damaged: Segments set aside that held any of them, removed whole.
        unknown: Others set aside that nobody can read all of, nor tell whose rows they hold.
        origins: Snapshots, checkpoints and bundles made from the rows.
    """

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    files_before: int = 0
    files_after: int = 0
    damaged: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    origins: Origins = field(default_factory=Origins)

    def document(self) -> dict[str, object]:
        """The result as JSON, what was found of models at its top."""
        fields = asdict(self)
        origins = fields.pop("origins")
        return {**fields, **origins}


def erase(
    config: CaptureConfig,
    selection: Selection,
    models: Sequence[Path] = (),
    sleep: Callable[[float], None] = time.sleep,
) -> Erased:
    """Erase what was written before this call; when it returns, no byte of it is on the disk.

    Rows in the segment that a living writer has open are waited for, until that is closed by its
    age. Distributions that an engine still holds back go when they come: their exchange's id is
    remembered. An exchange still under way has no row yet and is not selected, except by its id
    alone. Older versions of the tables cannot be read afterwards.

    Args:
        config: Names the log and the spool.
        selection: What to erase.
        models: Folders to look for checkpoints and bundles in.
        sleep: Waits between two looks at the spool.

    Raises:
        LogError: If the filter is not valid SQL, the store fails, or a writer does not close its
            segment; then run it again.
    """
    _close_segments(config, sleep)
    done = Erased()
    with locked(config.spool / COMMIT_LOCK), log_lock(config.log):
        with Log(config.log).connect() as connection:
            ids = selection.ids(connection)
        named = selection.exchanges if selection.is_by_id else ()
        ids = pc.unique(pa.concat_arrays([ids.cast(pa.string()), pa.array(named, pa.string())]))
        done.origins = find_origins(config.log, ids, models)
        forget(config.log, "erased", ids.to_pylist())
        _erase_damaged(config.spool, ids, done)
        for name in ("logits", "exchanges"):  # in this order: a second try still finds what is left
            _erase_from(config.log, name, ids, done)
    return done


def _close_segments(config: CaptureConfig, sleep: Callable[[float], None]) -> None:
    """Wait until every segment that is open now has been closed and committed."""
    config.spool.mkdir(parents=True, exist_ok=True)
    waiting = {name for name, _ in segments(config.spool, OPEN)}
    patience = config.segment_seconds + PATIENCE_SECONDS
    while True:
        Committer(config).commit()
        still_open = {name for name, _ in segments(config.spool, OPEN)} & waiting
        if not still_open:
            break
        if patience <= 0:
            paths = ", ".join(str(name.path(config.spool, OPEN)) for name in sorted(still_open))
            raise LogError(
                f"{paths}: still open after {config.segment_seconds + PATIENCE_SECONDS:.0f} s, and "
                "nothing was erased; end the process that writes it, then run this again"
            )
        patience -= POLL_SECONDS
        sleep(POLL_SECONDS)
    Repairer(config).salvage()


def _erase_from(log: LogFolder, name: str, ids: pa.Array, done: Erased) -> None:
    """Write files again without some exchanges; remove every file that still holds them."""
    change = retry_conflicts(partial(_replace, log, name, ids))
    if isinstance(log, Path):
        _vacuum(log, name)
    else:  # other machines may be writing files there
        purge(log, name, ids)
    done.rows[name] = change.num_erased
    done.files_before += len(change.removed)
    done.files_after += len(change.added)


def _replace(log: LogFolder, name: str, ids: pa.Array) -> Change:
    table = open_table(log, name)
    change = without(log / name, name, active_files(table), ids) if table else Change()
    if change.removed:
        replace(log, name, change)
    return change


def _vacuum(log: Path, name: str) -> None:
    """Remove every file that no version counts, or only older ones; none is being written."""
    table = open_table(log, name)
    if table is not None:
        vacuum(log / name, table, older_than_hours=0)


def _erase_damaged(spool: Path, ids: pa.Array, done: Erased) -> None:
    """Remove segments set aside that hold any of the exchanges.

    What could be read of them is in the log already.
    """
    for name, path in segments(spool, BAD):
        data = path.read_bytes()
        found = list(whole_batches(data, TABLES[name.table])) if name.table in TABLES else []
        if any(pc.any(pc.is_in(rows["exchange_id"], value_set=ids)).as_py() for _, rows in found):
            path.unlink()
            done.damaged.append(str(path))
        elif not _is_all(memoryview(data), [one for one, _ in found]):
            done.unknown.append(str(path))
            logger.warning("%s: unreadable in part, so nobody can tell whose rows; it stays", path)


def _is_all(data: memoryview, batches: Sequence[Frame]) -> bool:
    """Whether frames are everything that follows the heads of a segment."""
    whole, _ = walk(data)
    heads = whole[:NUM_HEADS]
    ends = [found.end for found in (*heads[-1:], *batches)]
    return len(heads) == NUM_HEADS and ends == [*(found.start for found in batches), len(data)]
