"""A cascade of two real vLLM engines that the gateway has started."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from capture.engine import free_port
from capture.log import Log, query
from tests.support.retort import address, serving
from tests.support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
ALWAYS, NEVER = 0.0, -100.0


def configure(folder: Path, threshold: float, ports: tuple[int, int]) -> Path:
    path = folder / "retort.toml"
    args = '["--max-model-len", "256", "--max-num-seqs", "4", "--enforce-eager"]'
    path.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{ports[0]}"
admin_listen = "127.0.0.1:{ports[1]}"

[gateway.routes.small]
model = "student"
engine.args = {args}
cascade = {{ route = "large", threshold = {threshold} }}

[gateway.routes.large]
model = "teacher"
engine.args = {args}

[capture]
segment_seconds = 0.2
commit_seconds = 0.2
""",
        encoding="utf-8",
    )
    return path


async def ask(client: httpx.AsyncClient, path: str, **more: Any) -> httpx.Response:
    answer = await client.post(path, json={"model": "small", **more})
    assert answer.status_code == 200, answer.text
    return answer


async def test_real_engines_tell_how_sure_they_are(tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        make_tiny_model(tmp_path / name)
    ports = (free_port(), free_port())
    config = configure(tmp_path, ALWAYS, ports)
    texts = {"prompt": "hello", "max_tokens": 8}
    with serving(config) as process:
        async with httpx.AsyncClient(base_url=address(config), timeout=60) as client:
            handed = [
                await ask(client, "/v1/chat/completions", **CHAT),
                await ask(client, "/v1/completions", **texts),
            ]
            configure(tmp_path, NEVER, ports)
            process.send_signal(signal.SIGHUP)
            await asyncio.sleep(1)  # nothing tells a client that it has been read
            kept = [
                await ask(client, "/v1/chat/completions", **CHAT),
                await ask(client, "/v1/completions", **texts),
            ]
            metrics = (await client.get("/metrics")).text
    with Log(tmp_path / "log").connect() as connection:
        rows = query(connection, "select * from exchanges order by started_at").to_pylist()
        recorded = query(connection, "select exchange_id from logits").to_pylist()

    for answers, route in ((handed, "large"), (kept, "small")):
        names = [each.headers["x-retort-deployment"] for each in answers]
        assert [name.split("-")[0] for name in names] == [route] * 2
        assert [each.json()["choices"][0]["logprobs"] for each in answers] == [None, None]
    assert 'retort_cascade_total{outcome="teacher",route="small"} 2.0' in metrics
    assert 'retort_cascade_total{outcome="student",route="small"} 2.0' in metrics
    assert sorted(row["role"] for row in rows) == ["incumbent"] * 4 + ["shadow"] * 2
    assert {row["status"] for row in rows} == {"completed"}
    # Both engines have the tap: each answer's distributions bear its own exchange's id.
    assert {row["exchange_id"] for row in rows} == {row["exchange_id"] for row in recorded}
