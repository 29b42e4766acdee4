"""API keys: what a client shows, what we keep of it, and what it allows (pure).

A key is ``rt-ID.SECRET``, the secret 256 random bits. We keep its id and an HMAC of the secret; who
reads the state store learns no key.
"""

import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gateway.errors import ApiKeyError
from gateway.privacy import Policy

PREFIX = "rt-"
ID_BYTES = 8
SECRET_BYTES = 32
NO_DIGEST = bytes(32)  # compared with when there is no such key, so that both take as long


@dataclass(frozen=True, slots=True)
class Quota:
    """How much may be asked; None where there is no limit.

    Attributes:
        requests_per_minute: Requests, those refused by the engine too.
        tokens_per_minute: Prompt and completion tokens.
        token_budget: Tokens in all, ever.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    token_budget: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept.

    Attributes:
        id: Public part.
        tenant: Whose requests these are; tenants share nothing, not even cached prefixes.
        digest: HMAC-SHA-256 of the secret.
        trusted: Whether its requests may use fields that reach into the engine.
        capture: The most that is kept of its exchanges.
        quota: How much it may ask.
        expires_at: When it ends by itself.
        revoked_at: When it was ended.
    """

    id: str
    tenant: str
    digest: bytes
    created_at: datetime
    trusted: bool = False
    capture: Policy = "full"
    quota: Quota = field(default_factory=Quota)
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Whether it has neither expired nor been revoked."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_secret() -> tuple[str, str]:
    """Draw an id and a secret."""
    return secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)


def shown(key_id: str, secret: str) -> str:
    """A key as its owner gets it, once."""
    return f"{PREFIX}{key_id}.{secret}"


def digest_of(pepper: bytes, secret: bytes) -> bytes:
    """What is kept of a secret."""
    return hmac.digest(pepper, secret, "sha256")


class KeyRing:
    """All keys, as they were read last; replaced whole."""

    def __init__(self, pepper: bytes, keys: Iterable[ApiKey]) -> None:
        self._pepper = pepper
        self._salts: dict[str, str] = {}
        self._keys = {key.id.encode(): key for key in keys}

    def find(self, headers: Mapping[bytes, bytes]) -> ApiKey:
        """The key that a request shows, as OpenAI's clients send it or as Anthropic's do.

        Raises:
            ApiKeyError: If there is none, or it is wrong, expired or revoked: not said which.
        """
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            token = headers.get(b"x-api-key", b"")
        key_id, _, secret = token.strip().removeprefix(PREFIX.encode()).partition(b".")
        key = self._keys.get(key_id)
        expected = NO_DIGEST if key is None else key.digest
        is_right = hmac.compare_digest(expected, digest_of(self._pepper, secret))
        if key is None or not is_right or not key.is_valid(datetime.now(UTC)):
            raise ApiKeyError("the API key is missing or not valid; send Authorization: Bearer KEY")
        return key

    def cache_salt(self, tenant: str) -> str:
        """What keeps a tenant's cached prefixes from being felt by others."""
        salt = self._salts.get(tenant)
        if salt is None:
            salt = self._salts[tenant] = self._derive(tenant)
        return salt

    def _derive(self, tenant: str) -> str:
        name = tenant.encode()
        framed = b"cache salt" + len(name).to_bytes(8) + name
        return hmac.digest(self._pepper, framed, "sha256").hex()
