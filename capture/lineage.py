"""What was made from rows of the log: read from the ``retort.json`` of checkpoints and bundles."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from capture.errors import LogError
from capture.log import Log, Snapshot, query
from capture.revision import model_revision
from capture.store import LogFolder

MANIFEST = "retort.json"
BESIDE_CONFIG = ("runs", "bundles", "checkpoints", "models", "demo")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """A model that learned from some of the rows.

    Attributes:
        path: Its folder.
        kind: ``checkpoint`` or ``bundle``.
        snapshots: Digests of the snapshots it read that held rows.
        num_rows: How many rows of those were among them; None if their versions are gone and it
            may have been any.
        parent: Folder of the model it was made from, if that is the one that read them.
    """

    path: str
    kind: str
    snapshots: list[str] = field(default_factory=list)
    num_rows: int | None = None
    parent: str | None = None


@dataclass(slots=True)
class Origins:
    """Everything found to be made from some rows.

    Attributes:
        snapshots: Snapshots that hold any, as the models name them.
        models: Checkpoints and bundles made from such a snapshot, or from such a model.
        num_models: How many checkpoints and bundles were looked at.
    """

    snapshots: list[dict[str, object]] = field(default_factory=list)
    models: list[MadeFrom] = field(default_factory=list)
    num_models: int = 0


@dataclass(frozen=True, slots=True)
class _Model:
    folder: Path
    kind: str
    created_at: datetime
    lineage: dict[str, object]

    @classmethod
    def read(cls, path: Path) -> "_Model | None":
        """Read a manifest; one that cannot be read is warned about."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            made = datetime.fromisoformat(document["created_at"])
            return cls(path.parent, document["kind"], made, dict(document["lineage"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            kind = type(error).__name__
            logger.warning("%s: unreadable (%s); what it was made from is unknown", path, kind)
            return None


def find_origins(log: LogFolder, ids: pa.Array, folders: Sequence[Path]) -> Origins:
    """Find what was made from some exchanges; to be asked while they are still in the log."""
    found = Origins()
    paths = {path.resolve() for folder in folders for path in folder.rglob(MANIFEST)}
    models = [model for path in sorted(paths) if (model := _Model.read(path))]
    found.num_models = len(models)
    counts: dict[tuple[str, datetime], int | None] = {}
    shown: dict[str, dict[str, object]] = {}
    for model in models if len(ids) else ():
        hits: dict[str, int | None] = {}
        for snapshot in _snapshots(model.lineage):
            key = (snapshot.digest, model.created_at)
            if key not in counts:
                counts[key] = _count(log, snapshot, ids, model.created_at)
            if counts[key] != 0:
                hits[snapshot.digest] = counts[key]
                shown[snapshot.digest] = snapshot.model_dump(mode="json")
        if hits:
            known = [count for count in hits.values() if count is not None]
            total = sum(known) if len(known) == len(hits) else None
            found.models.append(MadeFrom(str(model.folder), model.kind, list(hits), total))
    found.snapshots = list(shown.values())
    _add_descendants(found, models)
    return found


def _add_descendants(found: Origins, models: Sequence[_Model]) -> None:
    """Add what was made from a model already found, and what was made from that."""
    for parent in found.models:  # grows meanwhile
        revision = model_revision(Path(parent.path))
        for model in models:
            known = {made.path for made in found.models}
            parents = (model.lineage.get("parent_revision"), model.lineage.get("teacher_revision"))
            if str(model.folder) not in known and revision in parents:
                made = MadeFrom(str(model.folder), model.kind, parent=parent.path)
                found.models.append(made)


def _snapshots(lineage: object) -> Iterator[Snapshot]:
    """Snapshots anywhere in a lineage: what was trained on, what calibration read."""
    if isinstance(lineage, list):
        for item in lineage:
            yield from _snapshots(item)
    elif isinstance(lineage, dict):
        try:
            yield Snapshot.model_validate(lineage)
        except ValidationError:
            for item in lineage.values():
                yield from _snapshots(item)


def _count(log: LogFolder, snapshot: Snapshot, ids: pa.Array, made_at: datetime) -> int | None:
    """Rows of a snapshot that belong to some exchanges.

    Where its versions are gone, what is still there of the time before the model was made tells
    whether there can be any: None, or 0. So may a filter that no longer works, because it reads a
    file that is gone: None. A log found elsewhere is known by its rows.
    """
    reader = Log(log)
    try:
        rows = reader.read(snapshot, ["exchange_id"])
    except LogError:
        if snapshot.log == log.resolve():
            where = f"(\n{snapshot.where}\n) and started_at <= ?"
            sql = f"select exchange_id from {snapshot.view} where {where}"  # noqa: S608  the filter's own
            try:
                with reader.connect() as connection:
                    held = query(connection, sql, made_at)["exchange_id"]
            except LogError:
                return None
            return None if _num_of(held, ids) else 0
        return 0
    return _num_of(rows["exchange_id"], ids)


def _num_of(held: pa.ChunkedArray, ids: pa.Array) -> int:
    return int(pc.sum(pc.is_in(held.cast(pa.string()), value_set=ids)).as_py() or 0)
