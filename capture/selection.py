"""Which exchanges a person means, and the moments they name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb
import pyarrow as pa

from capture.errors import ConfigError, LogError
from capture.log import query

DURATION = re.compile(r"(\d+)\s*([dhw])")
UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Exchanges for which all of this is true, and their shadows.

    Attributes:
        where: SQL filter over ``exchanges``.
        tenant: Their tenant.
        user: The ``user`` of their request.
        exchanges: Their ids.
        before: They began earlier.
    """

    where: str | None = None
    tenant: str | None = None
    user: str | None = None
    exchanges: Sequence[str] = ()
    before: datetime | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing was asked for, which selects all."""
        return not self.exchanges and self == Selection(exchanges=self.exchanges)

    @property
    def is_by_id(self) -> bool:
        """Whether ids are all that was asked for."""
        return bool(self.exchanges) and self == Selection(exchanges=self.exchanges)

    def ids(self, connection: duckdb.DuckDBPyConnection) -> pa.Array:
        """Ids of what is selected in the log's tables.

        Distributions whose exchange was never written are selected by id and by day alone.

        Raises:
            LogError: If the filter is not valid SQL over ``exchanges``.
        """
        filters, values = self._filters()
        lonely, more_values = self._lonely()
        sql = f"""
            with selected as (select exchange_id from exchanges where {filters})
            select exchange_id from selected
            union select e.exchange_id from exchanges e
                join selected s on e.pair_id = s.exchange_id
            union select exchange_id from logits where {lonely}
                and exchange_id not in (select exchange_id from exchanges)
        """  # noqa: S608  the filter is the command
        try:
            found = query(connection, sql, *values, *more_values)
        except LogError as error:
            raise LogError(f"exchanges where {self.where!r}: {error}") from error
        return found["exchange_id"].combine_chunks()

    def _filters(self) -> tuple[str, list[object]]:
        """The condition over ``exchanges``; the line break ends a comment in a person's filter."""
        conditions: list[tuple[str, object]] = [
            ("tenant = ?", self.tenant),
            ("case when json_valid(request) then request ->> '$.user' end = ?", self.user),
            ("list_contains(?::varchar[], exchange_id)", list(self.exchanges) or None),
            ("started_at < ?", self.before),
        ]
        asked = [(sql, value) for sql, value in conditions if value is not None]
        parts = [f"(\n{self.where}\n)"] if self.where is not None else []
        parts += [f"({sql})" for sql, _ in asked]
        return " and ".join(parts) or "true", [value for _, value in asked]

    def _lonely(self) -> tuple[str, list[object]]:
        """The condition over distributions without an exchange."""
        if not (self.where is None and self.tenant is None and self.user is None):
            return "false", []
        parts, values = ["true"], list[object]()
        if self.exchanges:
            parts.append("list_contains(?::varchar[], exchange_id)")
            values.append(list(self.exchanges))
        if self.before is not None:
            parts.append("day < ?")
            values.append(self.before.strftime("%Y-%m-%d"))
        return " and ".join(parts), values


def parse_moment(text: str, now: datetime) -> datetime:
    """Read a date, a time, or how long ago: ``2026-01-31``, ``2026-01-31T12:00+01:00``, ``30d``.

    Raises:
        ConfigError: If it is none of these.
    """
    ago = DURATION.fullmatch(text.strip())
    if ago:
        return now - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no moment; expected a date (2026-01-31), a time (2026-01-31T12:00), in "
            "UTC unless it says otherwise, or how long ago (30d, 12h, 4w)"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
