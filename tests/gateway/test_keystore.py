import asyncio
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.config import load
from gateway.errors import ApiKeyError, BudgetError, KeyNotFoundError, StateStoreError
from gateway.exchange import Request
from gateway.gate import Gate
from gateway.holdings import keys_held
from gateway.keyholder import Keyholder
from gateway.keys import ApiKey, Quota
from gateway.keystore import KeyStore, Used
from tests.gateway.test_keys import PEPPER, made
from tests.support.gateway_process import configure
from tests.support.killable import wait_for


@pytest.fixture
def store(url: str) -> Iterator[KeyStore]:
    opened = KeyStore(url)
    yield opened
    opened.close()


def test_a_key_comes_back_as_it_was_stored(url: str, store: KeyStore) -> None:
    plain, _ = made("acme")
    full, _ = made(
        "other",
        trusted=True,
        capture="text",
        quota=Quota(10, 1000, 10**12),
        expires_at=datetime.now(UTC) + timedelta(days=1),
    )
    store.add(plain)
    store.add(full)

    reopened = KeyStore(url)
    assert reopened.keys() == {plain: Used(), full: Used()}
    reopened.close()


def test_a_revoked_key_stays_listed_and_ended(store: KeyStore) -> None:
    key, _ = made()
    store.add(key)
    store.revoke(key.id)
    (first,) = store.keys()
    store.revoke(key.id)

    assert first.revoked_at is not None
    assert list(store.keys()) == [first]
    with pytest.raises(KeyNotFoundError, match="no key 'unknown'"):
        store.revoke("unknown")


def test_what_many_gateways_use_at_once_adds_up(url: str, store: KeyStore) -> None:
    keys = [made()[0], made()[0]]
    for key in keys:
        store.add(key)

    def use(number: int) -> None:
        own = KeyStore(url)
        for turn in range(10):
            used = {key.id: Used(1, number + turn) for key in keys}
            own.add_used(used if number % 2 else dict(reversed(used.items())))
        own.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))

    tokens = sum(number + turn for number in range(4) for turn in range(10))
    assert list(store.keys().values()) == [Used(40, tokens)] * 2


def request(key: ApiKey, **parsed: object) -> Request:
    return Request("/v1/completions", "support", b"", parsed, False, "", key)


async def test_the_gate_and_the_store_learn_from_each_other(url: str, store: KeyStore) -> None:
    key, text = made(quota=Quota(token_budget=100))
    headers = {b"authorization": f"Bearer {text}".encode()}
    gate, other = Gate(), Gate()
    own = KeyStore(url)
    here, there = Keyholder(gate, store, PEPPER), Keyholder(other, own, PEPPER)
    await here.refresh()
    with pytest.raises(ApiKeyError):
        gate.admit(headers)

    store.add(key)
    await here.refresh()
    await there.refresh()
    assert gate.admit(headers) == key
    gate.requests[key.id] += 1
    gate.tokens[key.id] += 90
    await here.refresh()
    await there.refresh()

    assert store.keys() == {key: Used(1, 90)}
    with pytest.raises(BudgetError, match="10 tokens of the budget are left"):
        await other.reserve(request(key, max_tokens=11))
    store.revoke(key.id)
    await there.refresh()
    with pytest.raises(ApiKeyError):
        other.admit(headers)
    own.close()


async def test_while_the_store_fails_keys_go_on_and_usage_waits(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = made()
    store.add(key)
    gate = Gate()
    keyholder = Keyholder(gate, store, PEPPER)
    await keyholder.refresh()
    gate.tokens[key.id] += 5

    def fail(_: object) -> None:
        raise StateStoreError("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "add_used", fail)
        with pytest.raises(StateStoreError):
            await keyholder.refresh()
        gate.tokens[key.id] += 6
        gate.requests[key.id] += 1
    assert gate.admit({b"x-api-key": text.encode()}) == key
    await keyholder.refresh()

    assert store.keys() == {key: Used(1, 11)}


async def test_it_refreshes_by_itself(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.keyholder.REFRESH_SECONDS", 0.02)
    gate = Gate()
    ending = asyncio.Event()
    running = asyncio.create_task(Keyholder(gate, store, PEPPER).run(ending))
    key, text = made()
    store.add(key)
    await asyncio.to_thread(wait_for, lambda: admitted(gate, key, text))
    ending.set()
    await running


async def test_what_is_being_stored_when_the_gateway_ends_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.keyholder.REFRESH_SECONDS", 0.02)
    settings = load(configure(tmp_path, gateway='auth = "keys"'))
    settings.run_dir.mkdir(parents=True)
    key, _ = made()
    store = KeyStore(settings.state_store)
    store.add(key)
    is_storing = asyncio.Event()
    loop = asyncio.get_running_loop()

    def store_slowly(self: KeyStore, used: Mapping[str, Used]) -> None:
        if used:
            loop.call_soon_threadsafe(is_storing.set)
            time.sleep(0.3)
        add_used(self, used)

    add_used = KeyStore.add_used
    monkeypatch.setattr(KeyStore, "add_used", store_slowly)
    gate = Gate()
    async with keys_held(settings, None, gate):
        gate.requests[key.id] += 1
        gate.tokens[key.id] += 5
        await is_storing.wait()

    assert store.keys() == {key: Used(1, 5)}
    store.close()


def admitted(gate: Gate, key: ApiKey, text: str) -> bool:
    try:
        return gate.ring is not None and gate.admit({b"x-api-key": text.encode()}) == key
    except ApiKeyError:
        return False
