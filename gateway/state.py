"""The memory of rollouts: a small SQL database, SQLite unless told otherwise.

Synchronous, for use in a thread. Every change is one transaction, so a killed process leaves the
state before it or after it.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from gateway.database import open_database, translated
from gateway.errors import RolloutNotFoundError, StateConflictError
from gateway.rollout import DECISION, ROLLOUT, Rollout, roll_back
from gateway.tables import DECISIONS, IS_ACTIVE, ROLLOUTS


class Saved(NamedTuple):
    """A rollout as it lies in the store.

    Attributes:
        rollout: With its whole history.
        version: What ``save`` must be given to replace it.
    """

    rollout: Rollout
    version: int


class StateStore:
    """Rollouts and the moves they made; safe to share between threads and processes."""

    def __init__(self, url: str) -> None:
        """Open the database at an SQLAlchemy URL and create what is missing in it.

        Raises:
            ConfigError: If the URL is malformed, or names a database without a driver here.
            StateStoreError: If it cannot be opened; its folder must exist.
        """
        self._engine = open_database(url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def save(self, rollout: Rollout, expected_version: int) -> int:
        """Store a rollout with the moves it made since, all or nothing.

        Args:
            rollout: Its history may only have grown.
            expected_version: 0 for a new rollout, else what the last ``save`` returned.

        Returns:
            The new version.

        Raises:
            StateConflictError: If somebody else has saved it meanwhile, or if it is new and its
                route already has a rollout in shadow or canary. Nothing was changed.
            StateStoreError: If the database fails. Nothing was changed.
        """
        row = ROLLOUT.dump_python(rollout, mode="json") | {"started_at": rollout.started_at}
        del row["history"]
        row["version"] = expected_version + 1
        with translated(), self._engine.begin() as connection:
            _put(connection, row, expected_version)
            _append(connection, rollout)
        return expected_version + 1

    def give_up(self, rollout_id: str, note: str) -> None:
        """Roll back a rollout that cannot go on, whatever others do to it meanwhile.

        Raises:
            StateStoreError: If the database fails.
        """
        while (saved := self.load(rollout_id)).rollout.is_active:
            with contextlib.suppress(StateConflictError):
                moved = roll_back(saved.rollout, datetime.now(UTC), note, by="guards")
                self.save(moved, saved.version)

    def load(self, rollout_id: str) -> Saved:
        """Read one rollout.

        Raises:
            RolloutNotFoundError: If there is none of that id.
            StateStoreError: If the database fails.
        """
        found = self._read(ROLLOUTS.c.id == rollout_id)
        if not found:
            raise RolloutNotFoundError(
                f"there is no rollout {rollout_id!r}; `retort rollout status` lists them"
            )
        return found[0]

    def active(self, route: str) -> Saved | None:
        """Read the rollout being tried on a route, if any; there is at most one."""
        found = self._read(ROLLOUTS.c.route == route, IS_ACTIVE)
        return found[0] if found else None

    def live(self, route: str) -> Saved | None:
        """Read the rollout that went live last on a route, whose bundle is the incumbent now."""
        found = self._read(ROLLOUTS.c.route == route, ROLLOUTS.c.state == "live")
        return found[-1] if found else None

    def rollouts(self, route: str | None = None) -> Sequence[Saved]:
        """Read every rollout, or a route's, in the order they were started."""
        return self._read(*(() if route is None else (ROLLOUTS.c.route == route,)))

    def _read(self, *where: ColumnElement[bool]) -> list[Saved]:
        """Read rollouts with their decisions; one statement, so that both are of one moment."""
        query = (
            select(ROLLOUTS, DECISIONS)
            .join_from(ROLLOUTS, DECISIONS, isouter=True)
            .where(*where)
            .order_by(ROLLOUTS.c.started_at, ROLLOUTS.c.id, DECISIONS.c.number)
        )
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        grouped = groupby(rows, key=lambda row: row[ROLLOUTS.c.id])
        return [_saved(list(group)) for _, group in grouped]


def _put(connection: Connection, row: dict[str, object], expected_version: int) -> None:
    """Insert the rollout's row, or replace the expected version of it."""
    try:
        if expected_version == 0:
            connection.execute(insert(ROLLOUTS).values(row))
            return
        where = (ROLLOUTS.c.id == row["id"], ROLLOUTS.c.version == expected_version)
        changed = connection.execute(update(ROLLOUTS).where(*where).values(row)).rowcount
    except IntegrityError as error:
        raise StateConflictError(
            f"route {row['route']!r} already has a rollout under way; wait for its end or roll it "
            "back first"
        ) from error
    if changed == 0:
        raise StateConflictError(
            f"rollout {row['id']} is no longer at version {expected_version}: somebody else "
            "changed it; read it again before changing it"
        )


def _append(connection: Connection, rollout: Rollout) -> None:
    """Add the decisions that the store does not have yet."""
    count = select(func.count()).where(DECISIONS.c.rollout_id == rollout.id)
    known = connection.execute(count).scalar_one()
    for number, decision in enumerate(rollout.history[known:], start=known):
        row = DECISION.dump_python(decision, mode="json") | {"at": decision.at}
        row |= {"rollout_id": rollout.id, "number": number}
        connection.execute(insert(DECISIONS).values(row))


def _saved(rows: Sequence[RowMapping]) -> Saved:
    """Rebuild one rollout from its row joined with each of its decisions."""
    history = tuple(
        DECISION.validate_python({column.name: row[column] for column in DECISIONS.c})
        for row in rows
        if row[DECISIONS.c.number] is not None
    )
    fields = {column.name: rows[0][column] for column in ROLLOUTS.c}
    rollout = ROLLOUT.validate_python(fields)
    return Saved(replace(rollout, history=history), fields["version"])
