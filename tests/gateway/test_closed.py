"""Closed to those who don't belong: known failures of gateways, a test each."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.admin import create_admin_app
from gateway.gate import Gate
from gateway.keys import ApiKey, KeyRing, Quota
from gateway.limits import Limiter
from tests.gateway.test_keys import PEPPER, made
from tests.gateway.test_relay import Stand, chat, stand


def gate_of(*keys: ApiKey, **tenants: Quota) -> Gate:
    return Gate(ring=KeyRing(PEPPER, keys), limiter=Limiter(tenants))


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


async def ask(s: Stand, text: str, word: str = "hi", **more: Any) -> httpx.Response:
    return await s.client.post(
        "/v1/chat/completions", json=chat(word, **more), headers=bearer(text)
    )


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/models HTTP/1.1",
        b"GET /metrics HTTP/1.1",
        b"GET //v1/models HTTP/1.1",
        b"GET /healthz/../v1/models HTTP/1.1",
        b"GET http://x/healthz/v1/models HTTP/1.1",
        b"GET /v1/models?x=/healthz HTTP/1.1",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2",
    ],
)
@pytest.mark.parametrize(
    "host", [b"gateway", b"gateway/healthz?", b"127.0.0.1/healthz#", b"x@y/readyz", b""]
)
async def test_no_host_or_path_opens_what_a_key_should(
    tmp_path: Path, request_line: bytes, host: bytes
) -> None:
    async with stand(tmp_path, gate=gate_of(made()[0])) as s:
        where = s.client.base_url
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(request_line + b"\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n{}")
        status = (await reader.read()).split(b" ", 2)[1]
        writer.close()

    assert status in {b"400", b"401", b"404"}
    assert s.engine.bodies == []


async def test_only_health_is_open(tmp_path: Path) -> None:
    key, text = made()
    async with stand(tmp_path, gate=gate_of(key)) as s:
        paths = ("/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/support")
        without = {path: (await s.client.get(path)).status_code for path in paths}
        with_key = [(await s.client.get(path, headers=bearer(text))).status_code for path in paths]
        refused = await s.client.post("/v1/chat/completions", json=chat("hi"))
        asked = await ask(s, text)

    assert without.pop("/healthz") == without.pop("/readyz") == 200
    assert set(without.values()) == {401}
    assert set(with_key) == {200}
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert asked.status_code == 200


async def test_a_body_is_not_read_before_the_key_is(tmp_path: Path) -> None:
    async with stand(tmp_path, gate=gate_of(made()[0])) as s:
        broken = await s.client.post("/v1/chat/completions", content=b"{" * 100_000)
    assert broken.status_code == 401


async def test_an_api_key_opens_nothing_of_the_operators() -> None:
    _, text = made()
    app = create_admin_app(None, "the admin key")  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        for path in ("/admin/deployments", "/admin/rollouts", "/nothing"):
            answer = await client.get(path, headers=bearer(text))
            assert answer.status_code in {401, 404}


async def test_a_redirect_is_passed_on_and_not_followed(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        answer = await s.client.post("/v1/chat/completions", json=chat("redirect"))
    assert answer.status_code == 307


@pytest.mark.parametrize("field", ["api_base", "vllm_xargs", "chat_template", "cache_salt"])
async def test_a_field_not_allowed_reaches_no_engine_unless_the_key_is_trusted(
    tmp_path: Path, field: str
) -> None:
    (plain, plain_text), (trusted, trusted_text) = made(), made(trusted=True)
    more: dict[str, Any] = {field: {"a": 1}}
    async with stand(tmp_path, gate=gate_of(plain, trusted)) as s:
        refused = await ask(s, plain_text, **more)
        assert s.engine.bodies == []
        allowed = await ask(s, trusted_text, **more)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert allowed.status_code == 200
    assert field in s.engine.bodies[0]


async def test_the_tag_of_capture_cannot_be_forged(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        forged: dict[str, Any] = {"vllm_xargs": {"retort": "somebody elses exchange"}}
        answer = await s.client.post("/v1/chat/completions", json=chat("hi", **forged))
    assert answer.status_code == 400
    assert s.engine.bodies == []


async def test_only_harmless_headers_pass_from_an_untrusted_key(tmp_path: Path) -> None:
    (plain, plain_text), (trusted, trusted_text) = made(), made(trusted=True)
    more = {"x-request-id": "7", "x-data-parallel-rank": "1", "traceparent": "00-1-2-3"}
    async with stand(tmp_path, gate=gate_of(plain, trusted)) as s:
        for text in (plain_text, trusted_text):
            headers = {**bearer(text), **more, "x-api-key": "another", "cookie": "a=b"}
            await s.client.post("/v1/chat/completions", json=chat("hi"), headers=headers)

    untrusted, own = s.engine.headers
    assert {"x-request-id", "x-data-parallel-rank"} & untrusted.keys() == set()
    assert {"x-request-id", "x-data-parallel-rank"} <= own.keys()
    assert untrusted["traceparent"] == "00-1-2-3"
    for sent in (untrusted, own):
        assert {"authorization", "x-api-key", "cookie"} & sent.keys() == set()


async def test_tenants_never_share_a_cached_prefix_and_one_tenants_keys_do(
    tmp_path: Path,
) -> None:
    keys = [made("acme"), made("acme"), made("other")]
    async with stand(tmp_path, gate=gate_of(*(key for key, _ in keys))) as s:
        for _, text in keys:
            await ask(s, text)

    first, second, other = (body["cache_salt"] for body in s.engine.bodies)
    assert first == second != other
    assert "acme" not in str(first)


async def test_without_keys_nothing_is_added_for_them(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        await s.client.post("/v1/chat/completions", json=chat("hi"))
    assert "cache_salt" not in s.engine.bodies[0]


async def test_rows_name_key_and_tenant(tmp_path: Path) -> None:
    key, text = made("acme")
    async with stand(tmp_path, gate=gate_of(key)) as s:
        await ask(s, text)
        (row,) = await s.rows()
    assert (row["tenant"], row["key_id"]) == ("acme", key.id)


async def test_a_key_can_ask_for_less_capture_than_its_route(tmp_path: Path) -> None:
    key, text = made(capture="off")
    async with stand(tmp_path, gate=gate_of(key)) as s:
        await ask(s, text)
        (row,) = await s.rows()
    assert (row["request"], row["capture"]) == ("null", "off")
    assert "vllm_xargs" not in s.engine.bodies[0]


async def test_a_budget_holds_for_a_hundred_requests_at_once(tmp_path: Path) -> None:
    # Each may take 1,000 tokens and some, and takes 5: two fit at a time.
    key, text = made(quota=Quota(token_budget=2200))
    gate = gate_of(key)
    async with stand(tmp_path, gate=gate) as s:
        asking = [ask(s, text, "echo x", max_tokens=1000) for _ in range(100)]
        answers = await asyncio.gather(*asking)
        later = await ask(s, text, max_tokens=1000)

    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert later.status_code == 200  # what was reserved has come back
    assert gate.requests[key.id] == statuses.count(200) + 1
    assert 0 < gate.tokens[key.id] < 2200


async def test_a_minutes_quota_says_when_to_come_back(tmp_path: Path) -> None:
    key, text = made(quota=Quota(requests_per_minute=2))
    async with stand(tmp_path, gate=gate_of(key)) as s:
        statuses = [(await ask(s, text)).status_code for _ in range(3)]
        refused = await ask(s, text)
        metrics = (await s.client.get("/metrics", headers=bearer(text))).text

    assert statuses == [200, 200, 429]
    assert 25 <= int(refused.headers["retry-after"]) <= 30
    assert 'retort_refused_requests_total{reason="rate_limit_exceeded"} 2.0' in metrics


@pytest.mark.parametrize("word", ["pause", "hang"])
async def test_a_client_that_leaves_pays_for_what_it_got_and_gets_back_the_rest(
    tmp_path: Path, word: str
) -> None:
    key, text = made(quota=Quota(token_budget=100_000))
    gate = gate_of(key)
    async with stand(tmp_path, gate=gate) as s:
        asking = asyncio.create_task(ask(s, text, word, stream=word == "pause", max_tokens=90_000))
        await asyncio.sleep(0.3)
        again = await ask(s, text, max_tokens=90_000)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(s.ended.get(), 5)
        after = await ask(s, text, max_tokens=90_000)

    assert (again.status_code, after.status_code) == (429, 200)
    assert gate.tokens[key.id] < 200


async def test_a_request_that_no_engine_takes_costs_nothing(tmp_path: Path) -> None:
    key, text = made()
    gate = gate_of(key)
    async with stand(tmp_path, gate=gate) as s:
        await ask(s, text, "refuse")
        await ask(s, text, "hi", n=10_000)
    assert gate.tokens[key.id] == 0


async def test_nobody_gets_what_was_meant_for_another(tmp_path: Path) -> None:
    keys = [made(f"tenant {number}") for number in range(8)]
    async with stand(tmp_path, gate=gate_of(*(key for key, _ in keys))) as s:

        async def tenant(number: int, text: str) -> None:
            for turn in range(25):
                own = f"{number} {turn} " + "x" * (37 * turn % 1500)
                answer = await ask(s, text, f"echo {own}")
                assert answer.json()["choices"][0]["message"]["content"] == own

        await asyncio.gather(*(tenant(number, text) for number, (_, text) in enumerate(keys)))
        rows = await s.rows()

    for row in rows:
        asked = json.loads(str(row["request"]))["messages"][0]["content"]
        assert row["tenant"] == f"tenant {asked.split(' ')[1]}"
        assert row["response_text"] == [asked.removeprefix("echo ")]


async def test_neither_secrets_nor_prompts_are_in_an_error_a_log_or_a_metric(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    key, text = made()
    canaries = [text.partition(".")[2], "canary-prompt-4711", "canary-wrong-key"]
    said: list[str] = []
    with caplog.at_level("DEBUG"):
        async with stand(tmp_path, gate=gate_of(key)) as s:
            for word in ("hi", "fail", "refuse", "break", "redirect"):
                try:
                    answer = await ask(s, text, word, user="canary-prompt-4711", n=2)
                    said.append(answer.text)
                except httpx.TransportError as error:
                    said.append(str(error))
            for body in (b"canary-prompt-4711", b'{"model": "canary-prompt-4711"}'):
                answer = await s.client.post(
                    "/v1/chat/completions", content=body, headers=bearer("rt-1.canary-wrong-key")
                )
                said.append(answer.text)
            said.append((await s.client.get("/metrics", headers=bearer(text))).text)

    # httpx and the fake engine are the client's and the engine's own logs.
    logged = [
        r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))
    ]
    output = capfd.readouterr()
    for canary in canaries:
        assert not [line for line in (*said, *logged, output.out, output.err) if canary in line]
