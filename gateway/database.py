"""The state store's database: SQLite unless told otherwise, opened and translated in one place."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from capture.errors import ConfigError
from gateway.errors import StateStoreError
from gateway.tables import METADATA, ONE_ACTIVE

ALONE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(8245920)"}
"""What makes others wait who create tables too."""
WAIT_SECONDS = 10
"""How long a connection waits for another one's write, and for a server that stays silent."""
PRAGMAS = (f"busy_timeout={WAIT_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON")


def open_database(url: str) -> Engine:
    """Open the database at an SQLAlchemy URL and create what is missing in it.

    Raises:
        ConfigError: If the URL is malformed, or names a database without a driver here.
        StateStoreError: If it cannot be opened; its folder must exist.
    """
    try:
        engine = create_engine(url, connect_args=_patience(url))
    except (ArgumentError, ImportError) as error:
        raise ConfigError(f"the state store cannot be opened: {error}; see state_url") from error
    if engine.dialect.name == "postgresql" and "options" not in engine.url.query:
        event.listen(engine, "begin", _limit_statements)
    with translated():
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
        with engine.begin() as connection:
            if engine.dialect.name in ALONE:
                connection.exec_driver_sql(ALONE[engine.dialect.name])
            METADATA.create_all(connection)
            ONE_ACTIVE.create(connection, checkfirst=True)  # an older store has a narrower one
    return engine


def _patience(url: str) -> dict[str, object]:
    """How psycopg is not to wait for ever, unless the URL says how long."""
    made = make_url(url)
    if made.get_backend_name() != "postgresql":
        return {}
    wanted = {
        "connect_timeout": WAIT_SECONDS,
        "tcp_user_timeout": WAIT_SECONDS * 1000,
    }
    return {name: value for name, value in wanted.items() if name not in made.query}


def _limit_statements(connection: Connection) -> None:
    """Within a transaction, not a session: between us there may be a pool that hands those on."""
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {WAIT_SECONDS * 1000}")


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Let readers go on beside a writer, and a second writer wait."""
    cursor = connection.cursor()
    for pragma in PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    _write_ahead(cursor)
    cursor.close()


def _write_ahead(cursor: DBAPICursor) -> None:
    """Give a new file its write-ahead log; a switch meeting a writer fails without waiting."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@contextmanager
def translated() -> Iterator[None]:
    """Turn the database's errors into ours, without statements, values or passwords."""
    try:
        yield
    except DBAPIError as error:
        raise StateStoreError(f"the state store failed: {error.orig}; see state_url") from error
    except PoolTimeoutError as error:
        raise StateStoreError("the state store has no connection free; try again") from error
