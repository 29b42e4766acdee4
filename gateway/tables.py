"""The state store's tables, in SQL that SQLite and PostgreSQL both speak."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, for databases that keep the zone and for SQLite, which drops it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Write UTC."""
        del dialect
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


METADATA = MetaData()
ROLLOUTS = Table(
    "rollouts",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("route", String(255), nullable=False),
    Column("bundle", Text, nullable=False),
    Column("candidate", String(255), nullable=False),
    Column("steps", JSON, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("evidence", JSON, nullable=False),
)
DECISIONS = Table(
    "decisions",
    METADATA,
    Column("rollout_id", ForeignKey(ROLLOUTS.c.id), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("source", String(16), nullable=False),
    Column("target", String(16), nullable=False),
    Column("share", Float, nullable=False),
    Column("by", String(16), nullable=False),
    Column("note", Text, nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("evidence", JSON, nullable=False),
)
IS_ACTIVE = ROLLOUTS.c.state.in_(("shadow", "canary", "replacing", "watch"))
ONE_ACTIVE = Index(
    "one_rollout_under_way_per_route",
    ROLLOUTS.c.route,
    unique=True,
    sqlite_where=IS_ACTIVE,
    postgresql_where=IS_ACTIVE,
)
KEYS = Table(
    "api_keys",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(255), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("trusted", Boolean, nullable=False),
    Column("capture", String(8), nullable=False),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("token_budget", BigInteger),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)
USAGE = Table(
    "usage",
    METADATA,
    Column("key_id", ForeignKey(KEYS.c.id), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)
