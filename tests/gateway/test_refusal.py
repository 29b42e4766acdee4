"""What a client is told when it, or the gateway, is wrong: OpenAI's error body, always."""

import re
from pathlib import Path

import pytest

from gateway.exchange import Exchange
from gateway.routing import RouteTable
from tests.gateway.test_relay import chat, stand


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[1]", 400, "not a JSON object"),
        (b'{"model": "gpt-9"}', 404, "'gpt-9' does not exist; known: support"),
        (b"", 400, "not valid JSON"),
        (b'{"messages": []}', 400, "model is None, expected the name of a model"),
        (b'{"model": ["support"]}', 400, r"model is \['support'\], expected"),
        (b'{"model": "support", "x": "' + b"y" * 300 + b'"}', 413, r"max_body_bytes \(256\)"),
    ],
)
async def test_a_malformed_request_is_refused_in_openais_form(
    tmp_path: Path, body: bytes, status: int, message: str
) -> None:
    async with stand(tmp_path, max_body_bytes=256) as s:
        answer = await s.client.post("/v1/chat/completions", content=body)

    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert re.search(message, error["message"])
    assert s.ended.empty()


async def test_a_refused_request_is_counted_by_its_reason(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        await s.client.post("/v1/chat/completions", json={"model": "gpt-9"})
        await s.client.post("/v1/chat/completions", content=b"{")
        metrics = (await s.client.get("/metrics")).text

    for reason in ("model_not_found", "invalid_request_error"):
        assert f'retort_refused_requests_total{{reason="{reason}"}} 1.0' in metrics


async def test_a_body_far_too_large_is_refused_without_a_broken_connection(tmp_path: Path) -> None:
    async with stand(tmp_path, max_body_bytes=1024) as s:
        answer = await s.client.post("/v1/chat/completions", content=bytes(20_000_000))

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/sleep", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/gpt-9", 404),
    ],
)
async def test_a_wrong_path_or_method_is_refused_in_openais_form(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with stand(tmp_path) as s:
        answer = await s.client.request(method, path)

    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert ("allow" in answer.headers) == (status == 405)


async def test_a_bug_of_ours_is_answered_in_openais_form(tmp_path: Path) -> None:
    def fail(_: Exchange) -> None:
        raise ZeroDivisionError

    async with stand(tmp_path) as s:
        s.serving.on_begun = fail
        answer = await s.client.post("/v1/chat/completions", json=chat("hi"))

    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"


async def test_a_route_whose_engine_still_starts_asks_to_come_back(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        s.serving.table = RouteTable({})
        answer = await s.client.post("/v1/chat/completions", json=chat("hi"))

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answer.json()["error"]["code"] == "engine_not_ready"


async def test_an_engine_that_is_down_is_not_asked(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        pool = s.serving.table.routes["support"].incumbent.pool
        pool.config = pool.config.model_copy(update={"queue_seconds": 0.1})
        pool.set_up(s.engine_url, is_up=False)
        down = await s.client.post("/v1/chat/completions", json=chat("hi"))
        not_ready = await s.client.get("/readyz")
        pool.set_up(s.engine_url, is_up=True)
        up = await s.client.post("/v1/chat/completions", json=chat("hi"))
        rows = await s.rows()

    assert (down.status_code, up.status_code) == (503, 200)
    assert down.headers["retry-after"] == "10"
    assert (not_ready.status_code, not_ready.json()["waiting"]) == (503, ["support"])
    assert len(s.engine.bodies) == 1
    ends = [(row["status"], row["error_type"]) for row in rows]
    assert ends == [("failed", "engine_not_ready"), ("completed", None)]
