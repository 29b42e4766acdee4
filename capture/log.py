"""The log as its readers see it: versions, SQL views, and snapshots that can be read again."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pydantic import BaseModel, ConfigDict

from capture.delta import open_table, store_errors
from capture.errors import LogError
from capture.schema import TABLES
from capture.store import LogFolder, data_files
from capture.views import create_views

View = Literal["examples", "answers"]

KEY = ("exchange_id", "choice")
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
        for name, schema in TABLES.items():
            version = getattr(versions, name)
            table = None if version is None else open_table(self.folder, name, version)
            with store_errors(self.folder):
                found = schema.empty_table() if table is None else table.to_pyarrow_dataset()
                if snapshot and table is not None:
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

    def read(self, snapshot: Snapshot, columns: Sequence[str]) -> pa.Table:
        """Read columns of a snapshot's examples, ordered by exchange and choice.

        Raises:
            LogError: If a column does not exist, or the rows are not those of the snapshot.
        """
        wanted = list(dict.fromkeys([*KEY, *columns]))
        table = self._examples(snapshot, wanted)
        found = _digest(table)
        if found != snapshot.digest:
            raise LogError(
                f"{self.folder}: the snapshot's rows have changed ({table.num_rows} rows, expected "
                f"{snapshot.num_rows}; digest {found[:12]}, expected {snapshot.digest[:12]}): take "
                "a new snapshot, with a filter that always selects the same rows"
            )
        return table.select(list(columns))

    def _examples(self, snapshot: Snapshot, columns: Sequence[str]) -> pa.Table:
        names = ", ".join(f'"{column}"' for column in columns)
        # The line break keeps a comment at the filter's end from hiding the rest.
        sql = (
            f"select {names} from {snapshot.view} where (\n{snapshot.where}\n) "  # noqa: S608
            f"order by {', '.join(KEY)}"
        )
        with self.connect(snapshot) as connection:
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
