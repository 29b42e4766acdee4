"""Keys and what they have used, in the state store. Synchronous, for use in a thread."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from sqlalchemy import RowMapping, insert, select, update

from gateway.database import open_database, translated
from gateway.errors import KeyNotFoundError
from gateway.keys import ApiKey, Quota
from gateway.tables import KEYS, USAGE


@dataclass(frozen=True, slots=True)
class Used:
    """What a key has used in all."""

    requests: int = 0
    tokens: int = 0


class KeyStore:
    """Every key that was ever made, with its usage; safe to share between processes."""

    def __init__(self, url: str) -> None:
        """Open the state store.

        Raises:
            ConfigError: If its URL cannot be used.
            StateStoreError: If it cannot be opened.
        """
        self._engine = open_database(url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def add(self, key: ApiKey) -> None:
        """Store a new key, unused.

        Raises:
            StateStoreError: If the database fails; nothing was stored.
        """
        row = asdict(key) | row_of(key.quota) | {"digest": key.digest.hex()}
        del row["quota"]
        with translated(), self._engine.begin() as connection:
            connection.execute(insert(KEYS).values(row))
            connection.execute(insert(USAGE).values(key_id=key.id, requests=0, tokens=0))

    def keys(self) -> dict[ApiKey, Used]:
        """Read every key, oldest first, with what it has used.

        Raises:
            StateStoreError: If the database fails.
        """
        query = select(KEYS, USAGE).join_from(KEYS, USAGE).order_by(KEYS.c.created_at, KEYS.c.id)
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return {_key(row): Used(row[USAGE.c.requests], row[USAGE.c.tokens]) for row in rows}

    def revoke(self, key_id: str) -> None:
        """End a key; ending it again changes nothing.

        Raises:
            KeyNotFoundError: If there is none of that id.
            StateStoreError: If the database fails.
        """
        known = KEYS.c.id == key_id
        now = datetime.now(UTC)
        with translated(), self._engine.begin() as connection:
            if connection.execute(select(KEYS.c.id).where(known)).first() is None:
                raise KeyNotFoundError(f"there is no key {key_id!r}; `retort key list` shows them")
            valid = KEYS.c.revoked_at.is_(None)
            connection.execute(update(KEYS).where(known, valid).values(revoked_at=now))

    def add_used(self, used: Mapping[str, Used]) -> None:
        """Add to what keys have used, all or nothing.

        Raises:
            StateStoreError: If the database fails.
        """
        with translated(), self._engine.begin() as connection:
            for key_id, more in sorted(used.items()):  # one order, so that two writers never lock
                connection.execute(
                    update(USAGE)
                    .where(USAGE.c.key_id == key_id)
                    .values(
                        requests=USAGE.c.requests + more.requests,
                        tokens=USAGE.c.tokens + more.tokens,
                    )
                )


def row_of(quota: Quota) -> dict[str, int | None]:
    """A quota as columns."""
    return asdict(quota)


def _key(row: RowMapping) -> ApiKey:
    quota = Quota(**{name: row[KEYS.c[name]] for name in asdict(Quota())})
    names = ("id", "tenant", "created_at", "trusted", "capture", "expires_at", "revoked_at")
    fields = {name: row[KEYS.c[name]] for name in names}
    return ApiKey(**fields, digest=bytes.fromhex(row[KEYS.c.digest]), quota=quota)
