"""A cascade of two real vLLM engines that the gateway has started."""

import asyncio
import json
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

GREEDY = {"max_tokens": 128, "temperature": 0}  # long enough to be broken off
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], **GREEDY}),
    ("/v1/completions", {"prompt": "hello", **GREEDY}),
]
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
cascade = {{ route = "large", threshold = {threshold}, stream_threshold = {threshold} }}

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


def documents(answer: httpx.Response) -> list[dict[str, Any]]:
    if not answer.text.startswith("data: "):
        return [answer.json()]
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    return [json.loads(event) for event in events[:-1]]  # the last says that it is done


def said(answer: httpx.Response) -> str:
    """The text of the one choice, streamed or not."""
    choices = [choice for part in documents(answer) for choice in part["choices"]]
    parts = [choice.get("delta") or choice.get("message") or choice for choice in choices]
    return "".join(part.get("content") or part.get("text") or "" for part in parts)


async def ask(client: httpx.AsyncClient, path: str, **more: Any) -> httpx.Response:
    answer = await client.post(path, json={"model": "small", **more})
    assert answer.status_code == 200, answer.text
    return answer


async def test_real_engines_tell_how_sure_they_are(tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        make_tiny_model(tmp_path / name)
    ports = (free_port(), free_port())
    config = configure(tmp_path, ALWAYS, ports)
    with serving(config) as process:
        async with httpx.AsyncClient(base_url=address(config), timeout=60) as client:
            handed = [await ask(client, path, **body) for path, body in ASKED]
            handed += [await ask(client, path, **body, stream=True) for path, body in ASKED]
            configure(tmp_path, NEVER, ports)
            process.send_signal(signal.SIGHUP)
            await asyncio.sleep(1)  # nothing tells a client that it has been read
            kept = [await ask(client, path, **body) for path, body in ASKED]
            kept += [await ask(client, path, **body, stream=True) for path, body in ASKED]
            plain = [await ask(client, path, **body, model="large") for path, body in ASKED]
            metrics = (await client.get("/metrics")).text
    with Log(tmp_path / "log").connect() as connection:
        rows = query(connection, "select * from exchanges order by started_at").to_pylist()
        recorded = query(connection, "select exchange_id from logits").to_pylist()

    texts = [said(each) for each in plain] * 2  # the same weights
    for answers, route in ((handed, "large"), (kept, "small")):
        names = [each.headers["x-retort-deployment"] for each in answers]
        assert [name.split("-")[0] for name in names] == [route] * 4
        assert [said(each) for each in answers] == texts
        for answer in answers:
            choices = [choice for part in documents(answer) for choice in part["choices"]]
            assert {choice["logprobs"] for choice in choices} == {None}
    for signal_name in ("mean_logprob", "first_tokens"):
        for outcome in ("teacher", "student"):
            labels = f'outcome="{outcome}",route="small",signal="{signal_name}"'
            assert f"retort_cascade_total{{{labels}}} 2.0" in metrics
    assert sorted((row["role"], row["status"]) for row in rows) == [
        *[("incumbent", "completed")] * 10,
        *[("shadow", "aborted")] * 2,  # streams that were broken off
        *[("shadow", "completed")] * 2,
    ]
    # Both engines have the tap: each answer's distributions bear its own exchange's id.
    whole = {row["exchange_id"] for row in rows if row["status"] == "completed"}
    assert whole <= {row["exchange_id"] for row in recorded} <= {row["exchange_id"] for row in rows}
