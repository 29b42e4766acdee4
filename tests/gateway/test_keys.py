from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.errors import ApiKeyError
from gateway.keys import ApiKey, KeyRing, digest_of, new_secret, shown

PEPPER = b"a pepper"
NOW = datetime.now(UTC)


def made(tenant: str = "acme", *, pepper: bytes = PEPPER, **more: Any) -> tuple[ApiKey, str]:
    key_id, secret = new_secret()
    digest = digest_of(pepper, secret.encode())
    key = ApiKey(key_id, tenant, digest, NOW, **more)
    return key, shown(key_id, secret)


def test_a_key_is_found_by_what_its_owner_shows() -> None:
    key, text = made()
    ring = KeyRing(PEPPER, [made()[0], key])

    assert ring.find({b"authorization": f"Bearer {text}".encode()}) is key
    assert ring.find({b"authorization": f"bearer  {text} ".encode()}) is key
    assert ring.find({b"x-api-key": text.encode()}) is key


def test_a_secret_has_256_bits_and_none_is_like_another() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert min(len(secret) for _, secret in secrets) == 43  # base64 of 32 bytes


@pytest.mark.parametrize(
    "shown_as",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer rt-%s.",
        b"Bearer rt-%s",
        b"Bearer rt-%s.wrong",
        b"Bearer rt-unknown.%s",
        b"Basic rt-%s.x",
        b"Bearer rt-%s.x' OR '1'='1",
        b"Bearer \xff\x00.\r\n",
    ],
)
def test_what_is_not_a_key_opens_nothing(shown_as: bytes) -> None:
    key, _ = made()
    header = shown_as % key.id.encode() if b"%s" in shown_as else shown_as

    with pytest.raises(ApiKeyError, match="missing or not valid"):
        KeyRing(PEPPER, [key]).find({b"authorization": header})


def test_the_digest_is_not_a_key_and_another_pepper_fits_no_key() -> None:
    key, text = made()
    stolen = f"Bearer {shown(key.id, key.digest.hex())}".encode()
    right = {b"authorization": f"Bearer {text}".encode()}

    with pytest.raises(ApiKeyError):
        KeyRing(PEPPER, [key]).find({b"authorization": stolen})
    with pytest.raises(ApiKeyError):
        KeyRing(b"another", [key]).find(right)


@pytest.mark.parametrize("ended", [{"revoked_at": NOW}, {"expires_at": NOW - timedelta(seconds=1)}])
def test_a_key_that_has_ended_opens_nothing(ended: dict[str, Any]) -> None:
    key, text = made(**ended)
    with pytest.raises(ApiKeyError):
        KeyRing(PEPPER, [key]).find({b"authorization": f"Bearer {text}".encode()})


def test_the_same_answer_is_given_whatever_is_wrong_with_a_key() -> None:
    known, _ = made()
    said = set()
    for header in (b"", b"Bearer rt-unknown.x", f"Bearer rt-{known.id}.x".encode()):
        with pytest.raises(ApiKeyError) as refused:
            KeyRing(PEPPER, [known]).find({b"authorization": header})
        said.add(str(refused.value))
    assert len(said) == 1


def test_salts_differ_between_tenants_and_peppers_and_stay_the_same_within_one() -> None:
    ring = KeyRing(PEPPER, [])
    assert ring.cache_salt("acme") == KeyRing(PEPPER, [made()[0]]).cache_salt("acme")
    assert len({ring.cache_salt("a"), ring.cache_salt("b"), KeyRing(b"x", []).cache_salt("a")}) == 3
