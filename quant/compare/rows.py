"""Which rows of the log two models are compared on: held out, of one teacher, each prompt once."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capture.log import Log, Snapshot, query
from capture.revision import context_length, model_revision, tokenizer_hash
from quant.calibration import heldout_mask
from quant.compare.slices import Floats
from quant.errors import ComparisonError
from trainer.dataset import COLUMNS, Dataset, Ints, Ragged, answered, from_table, lot
from trainer.manifest import MANIFEST, Lineage, verify_folder
from trainer.rarity import rarity

KEYS = ("exchange_id", "choice", "model_revision", "tokenizer_hash", "prompt_ids")
ORIGINS = ("route", "tenant", "endpoint")
PURPOSE = b"compare"  # of the lot: other rows than those that training looks at first


@dataclass(frozen=True, slots=True)
class Choice:
    """What decides which rows are taken.

    Attributes:
        where: SQL filter over the log's ``examples`` view.
        rows: How many at most.
        heldout_fraction: Where the student does not say which share its training kept.
    """

    where: str
    rows: int
    heldout_fraction: float


@dataclass(frozen=True, slots=True)
class Rows:
    """What both models are asked.

    Attributes:
        dataset: With the teacher's distribution.
        exchange_ids: Where each row is found in the log.
        origins: Route, tenant and endpoint of each row.
        rarity: Of each prompt beside all of the teacher's in the log, in nats.
        training_ids: Exchanges of the teacher's that were not held out.
        num_heldout: Different held-out prompts that there are.
        without_room: How many of them fill the context of both models; left out.
        heldout_fraction: That they were chosen by.
        snapshot: Of the log.
        digest: SHA-256 over the exchanges' ids.
    """

    dataset: Dataset
    exchange_ids: tuple[str, ...]
    origins: dict[str, list[str | None]]
    rarity: Floats
    training_ids: tuple[str, ...]
    num_heldout: int
    without_room: int
    heldout_fraction: float
    snapshot: Snapshot
    digest: str


def lineage_of(folder: Path) -> Lineage:
    """What a folder's manifest says; nothing of one that has none.

    Raises:
        ComparisonError: If it holds no model.
        ManifestError: If it is not what its manifest says.
    """
    if not (folder / "config.json").is_file():
        raise ComparisonError(f"{folder}: no config.json there; give a Hugging Face model folder")
    return verify_folder(folder).lineage if (folder / MANIFEST).exists() else Lineage()


def choose_rows(log: Log, teacher: Path, student: Path, choice: Choice) -> Rows:
    """Take held-out rows of the log, the same for the same log, models and number.

    A prompt that was asked often counts once: its answers are the same each time, and say nothing
    new.

    Raises:
        ComparisonError: If the models read text differently, or there is no row for them.
        LogError: If the log cannot be read.
    """
    teachers, recipe = lineage_of(teacher), lineage_of(student).recipe
    if tokenizer_hash(teacher) != tokenizer_hash(student):
        raise ComparisonError(
            f"{student}: tokenizer {tokenizer_hash(student)}, the teacher's is "
            f"{tokenizer_hash(teacher)}: their tokens cannot be compared; choose models of one "
            "tokenizer"
        )
    fraction = float(str(recipe.get("heldout_fraction", choice.heldout_fraction)))
    snapshot = log.snapshot(choice.where)
    table = _of_teacher(log.read(snapshot, list(KEYS)), teacher, teachers)
    is_heldout = heldout_mask(table, fraction)
    chosen = _drawn(table, is_heldout)
    if not len(chosen):
        raise ComparisonError(
            f"none of the log's {table.num_rows} examples of {teacher} is held out at a share of "
            f"{fraction}: capture more traffic, or set `heldout_fraction` in [quant] if the "
            "student was not trained on this log"
        )
    num_heldout = len(chosen)
    chosen = _with_room(table, chosen, (teacher, student))
    rare = rarity(Ragged.from_column(table["prompt_ids"]))
    wanted = table.take(pa.array(chosen[: choice.rows]))
    found = _read(log, snapshot, wanted)
    ids = found["exchange_id"].to_pylist()
    rare_of = dict(zip(_keys(wanted), rare[chosen[: choice.rows]].tolist(), strict=True))
    return Rows(
        dataset=from_table(found, teacher),
        exchange_ids=tuple(ids),
        origins=_origins(log, snapshot, ids),
        rarity=np.array([rare_of[key] for key in _keys(found)]),
        training_ids=tuple(table.filter(pa.array(~is_heldout))["exchange_id"].unique().to_pylist()),
        num_heldout=num_heldout,
        without_room=num_heldout - len(chosen),
        heldout_fraction=fraction,
        snapshot=snapshot,
        digest=hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest(),
    )


def _of_teacher(table: pa.Table, teacher: Path, lineage: Lineage) -> pa.Table:
    """Rows that the folder's model answered, or else the one that it was made of.

    Raises:
        ComparisonError: If there are none.
    """
    of_tokenizer = table.filter(pa.compute.equal(table["tokenizer_hash"], tokenizer_hash(teacher)))
    wanted = [model_revision(teacher), lineage.teacher_revision]
    for revision in filter(None, wanted):
        kept = of_tokenizer.filter(pa.compute.equal(of_tokenizer["model_revision"], revision))
        if kept.num_rows:
            return kept
    found = sorted(set(of_tokenizer["model_revision"].to_pylist()))
    raise ComparisonError(
        f"no example that {teacher} answered (revision {wanted[0]}, tokenizer "
        f"{tokenizer_hash(teacher)}) in the log, only of {', '.join(found) or 'no model'}: give "
        "the folder of the model that answered, or widen `where` in [quant]"
    )


def _drawn(table: pa.Table, is_heldout: npt.NDArray[np.bool_]) -> Ints:
    """Row numbers of different held-out prompts, in an order that is chance but always the same."""
    first: dict[bytes, tuple[float, int]] = {}
    for row in np.flatnonzero(is_heldout).tolist():
        prompt = np.asarray(table["prompt_ids"][row].values, dtype=np.int32)
        first.setdefault(prompt.tobytes(), (lot(prompt, PURPOSE), row))
    return np.array([row for _, row in sorted(first.values())], dtype=np.int64)


def _with_room(table: pa.Table, chosen: Ints, models: Sequence[Path]) -> Ints:
    """Rows whose prompts leave one of the models room for an answer.

    Raises:
        ComparisonError: If there are none.
    """
    limits = [context_length(folder) for folder in models]
    room = max(math.inf if limit is None else limit for limit in limits)
    lengths = pa.compute.list_value_length(table["prompt_ids"]).to_numpy()
    found: Ints = chosen[lengths[chosen] < room]
    if not len(found):
        raise ComparisonError(
            f"all {len(chosen)} held-out prompts fill the context of both models, {room} tokens: "
            "give a model of a longer one"
        )
    return found


def _read(log: Log, snapshot: Snapshot, wanted: pa.Table) -> pa.Table:
    """Whole rows; the lists of all others stay on the disk.

    Raises:
        LogError: If they were erased in between.
    """
    ids = ", ".join(_quoted(each) for each in wanted["exchange_id"].to_pylist())
    where = f"(\n{snapshot.where}\n) and exchange_id in ({ids})"
    table = answered(log.read(log.snapshot(where), list(COLUMNS)))
    keys = set(_keys(wanted))
    return table.filter(pa.array([key in keys for key in _keys(table)], pa.bool_()))


def _origins(log: Log, snapshot: Snapshot, ids: Sequence[str]) -> dict[str, list[str | None]]:
    names = ", ".join(ORIGINS)
    listed = ", ".join(map(_quoted, ids))
    sql = f"select exchange_id, {names} from exchanges where exchange_id in ({listed})"  # noqa: S608
    with log.connect(snapshot) as connection:
        found = query(connection, sql).to_pylist()
    by_id = {row["exchange_id"]: row for row in found}
    return {name: [by_id[each][name] for each in ids] for name in ORIGINS}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["exchange_id"].to_pylist(), table["choice"].to_pylist(), strict=True))
