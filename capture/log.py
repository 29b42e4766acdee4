"""The log as its readers see it: versions, SQL views, and snapshots that can be read again."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pydantic import BaseModel, ConfigDict

from capture.delta import open_table, store_errors
from capture.errors import LogError
from capture.schema import TABLES
from capture.store import LogFolder, data_files
from capture.views import COMPLETE, OWN, RANK, VIEWS, create_views

View = Literal["examples", "answers"]

KEY = ("exchange_id", "choice")
RANKED = (
    *KEY,
    "source",
    "completion_ids",
    "topk_size",
    "tail_logprob",
    "flags",
)  # what finds a row
READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


class Versions(BaseModel):
    """Version of each table; None while nothing has been committed to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exchanges: int | None
    logits: int | None


class Snapshot(BaseModel):
    """Which examples a reader saw, so that they can be read again and named as lineage.

    Attributes:
        log: Folder of the log, or its URL.
        versions: Versions of its tables.
        where: SQL filter over the view.
        view: ``examples``, or ``answers``, which has those with flags too.
        num_rows: How many examples there are.
        digest: SHA-256 over their sorted ``(exchange_id, choice)``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    log: LogFolder
    versions: Versions
    where: str
    view: View = "examples"
    num_rows: int
    digest: str


class Log:
    """Reads the committed tables of one folder; a table not yet there reads as empty."""

    def __init__(self, folder: LogFolder) -> None:
        self.folder = folder

    def versions(self) -> Versions:
        """The newest version of each table."""
        tables = {name: open_table(self.folder, name) for name in TABLES}
        return Versions.model_validate(
            {name: table.version() if table else None for name, table in tables.items()}
        )

    def connect(self, snapshot: Snapshot | None = None) -> duckdb.DuckDBPyConnection:
        """Open DuckDB with the views ``exchanges``, ``logits`` and those joined from them.

        The tables stay as they were at this moment, or at the snapshot, less the files that
        erasure or retention removed since: compare a snapshot's digest, as ``read`` does. Close
        the connection, or use it as a context.

        Raises:
            LogError: If the snapshot's versions have been erased, or the store fails.
        """
        versions = snapshot.versions if snapshot else self.versions()
        connection = duckdb.connect()
        connection.execute("set timezone = 'UTC'")
        for name in TABLES:
            with store_errors(self.folder):
                found = self._table(name, versions)
                if snapshot and getattr(versions, name) is not None:
                    found = _still_there(found, self.folder / name)
            connection.register(name, found)
        create_views(connection)
        return connection

    def snapshot(self, where: str = "true", view: View = "examples") -> Snapshot:
        """Fix the rows of a view that a filter selects now.

        Raises:
            LogError: If the filter is not valid SQL over the view.
        """
        draft = Snapshot(
            log=self.folder.resolve(),
            versions=self.versions(),
            where=where,
            view=view,
            num_rows=0,
            digest="",
        )
        keys = self._examples(draft, KEY)
        return draft.model_copy(update={"num_rows": keys.num_rows, "digest": _digest(keys)})

    def read(
        self,
        snapshot: Snapshot,
        columns: Sequence[str],
        is_kept: npt.NDArray[np.bool_] | None = None,
    ) -> pa.Table:
        """Read columns of a snapshot's examples, ordered by exchange and choice.

        Args:
            snapshot: Of this log.
            columns: Of its view.
            is_kept: Which of the examples, in that order, are wanted; the others' columns are
                never in memory together. All are by default.

        Raises:
            LogError: If a column does not exist, or the rows are not those of the snapshot.
        """
        wanted = [f'"{column}"' for column in dict.fromkeys([*KEY, *columns])]
        if is_kept is None:
            return self._same(snapshot, self._examples(snapshot, wanted)).select(list(columns))
        keys = self._same(snapshot, self._examples(snapshot, KEY))
        is_read = _with_copies(keys, is_kept)
        named = keys.filter(pa.array(is_read))
        some = {"num_rows": named.num_rows, "digest": _digest(named)}
        table = self._same(
            snapshot.model_copy(update=some), self._examples(snapshot, wanted, named)
        )
        return table.filter(pa.array(is_kept[is_read])).select(list(columns))

    def ranks(self, snapshot: Snapshot) -> pa.Table:
        """What ``matching`` knows a snapshot's examples by, in their order.

        Raises:
            LogError: If the rows are not those of the snapshot.
        """
        table = self._same(snapshot, self._examples(snapshot, (*KEY, f"{RANK} as rank")))
        return table.append_column("number", pa.array(np.arange(table.num_rows)))

    def files(self, snapshot: Snapshot) -> ds.FileSystemDataset:
        """The files of ``logits`` that a snapshot with examples was taken of, where they lie.

        Raises:
            LogError: If its versions have been erased, or the store fails.
        """
        with store_errors(self.folder):
            return _still_there(self._table("logits", snapshot.versions), self.folder / "logits")

    def _same(self, snapshot: Snapshot, table: pa.Table) -> pa.Table:
        """What was read, if its rows are the snapshot's."""
        found = _digest(table)
        if found != snapshot.digest:
            raise LogError(
                f"{self.folder}: the snapshot's rows have changed ({table.num_rows} rows, expected "
                f"{snapshot.num_rows}; digest {found[:12]}, expected {snapshot.digest[:12]}): take "
                "a new snapshot, with a filter that always selects the same rows"
            )
        return table

    def _table(self, name: str, versions: Versions) -> ds.FileSystemDataset | pa.Table:
        version = getattr(versions, name)
        table = None if version is None else open_table(self.folder, name, version)
        return TABLES[name].empty_table() if table is None else table.to_pyarrow_dataset()

    def _examples(
        self, snapshot: Snapshot, columns: Sequence[str], named: pa.Table | None = None
    ) -> pa.Table:
        """Expressions over a snapshot's examples, or over those that a table names, in order."""
        key = ", ".join(KEY)
        among = "" if named is None else f"and ({key}) in (select {key} from named) "  # noqa: S608
        # The line break keeps a comment at the filter's end from hiding the rest.
        sql = (
            f"select {', '.join(columns)} from {snapshot.view} "  # noqa: S608
            f"where (\n{snapshot.where}\n) {among}order by {key}"
        )
        with self.connect(snapshot) as connection:
            if named is not None:
                connection.register("named", named)
            try:
                return query(connection, sql)
            except LogError as error:
                raise LogError(f"{snapshot.view} where {snapshot.where!r}: {error}") from error


def query(connection: duckdb.DuckDBPyConnection, sql: str, *values: object) -> pa.Table:
    """Run one statement, with values for its question marks, and return its rows.

    Raises:
        LogError: If DuckDB refuses it; with DuckDB's reason.
    """
    try:
        return connection.sql(sql, params=list(values) or None).to_arrow_table()
    except duckdb.Error as error:
        raise LogError(str(error).split("\n\n")[0]) from error


def query_only(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """Run what a person typed: one statement that reads the views and nothing else.

    Raises:
        LogError: If it would change something, reads files, or DuckDB refuses it.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise LogError(str(error).split("\n\n")[0]) from error
    kinds = [statement.type for statement in statements]
    if len(kinds) != 1 or kinds[0] not in READING:
        names = ", ".join(kind.name for kind in kinds) or "nothing"
        raise LogError(f"the log is read-only: expected one SELECT statement, found {names}")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return query(connection, sql)


def matching(rows: pa.Table, ranks: pa.Table, view: View, columns: Sequence[str]) -> pa.Table:
    """Find a snapshot's examples among some rows of ``logits``, such as those of one file.

    Args:
        rows: With ``RANKED`` and the columns wanted.
        ranks: As ``Log.ranks`` tells them.
        view: Of the snapshot.
        columns: Wanted beside each example's ``number`` in the snapshot.
    """
    names, complete = ", ".join(columns), COMPLETE.format(flags=VIEWS[view][0], source=OWN)
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("logits", rows)
        connection.register("ranks", ranks)
        return query(
            connection,
            f"select number, {names} from (select *, {RANK} as rank from {complete}) "  # noqa: S608
            f"join ranks using ({', '.join(KEY)}, rank)",
        )


def _with_copies(keys: pa.Table, is_kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which rows have the key of one that is kept: a choice that was written twice may be two."""
    if not len(is_kept):
        return is_kept
    sames = (pc.equal(keys[name][1:], keys[name][:-1]) for name in KEY)
    key = np.append(0, np.cumsum(~np.asarray(pc.and_(*sames))))
    copies: npt.NDArray[np.bool_] = np.bincount(key, weights=is_kept)[key] > 0
    return copies


def _still_there(dataset: ds.FileSystemDataset, folder: LogFolder) -> ds.FileSystemDataset:
    """The part of a table whose files have not been removed."""
    fragments = list(dataset.get_fragments())
    present = {file.path for file in data_files(folder)}
    kept = [fragment for fragment in fragments if fragment.path in present]
    if len(kept) == len(fragments):
        return dataset
    return ds.FileSystemDataset(kept, dataset.schema, dataset.format, dataset.filesystem)


def _digest(keys: pa.Table) -> str:
    total = hashlib.sha256()
    pairs = zip(*(keys[name].to_pylist() for name in KEY), strict=True)
    for exchange_id, choice in pairs:
        total.update(f"{exchange_id}\0{choice}\n".encode())
    return total.hexdigest()
