"""An engine that is stopped right after its last answers: nothing the tap recorded is lost."""

import asyncio
import uuid
from pathlib import Path

import httpx
import pytest

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec
from capture.host import SMALL_ENGINE_ENV, USUAL_EXECUTOR
from capture.recovery import recover
from capture.spool import closed_segments, read_segment
from tests.integration.conftest import ARGS

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]


async def complete(client: httpx.AsyncClient, tag: str, **params: object) -> None:
    body = {"model": "tiny", "prompt": "last words", "vllm_xargs": {"retort": tag}, **params}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text


async def test_rows_of_the_last_moment_are_in_the_spool(tiny_model: Path, tmp_path: Path) -> None:
    capture = CaptureConfig(spool=tmp_path / "spool", k_max=8, segment_seconds=60.0)
    args = (*ARGS, *USUAL_EXECUTOR)  # a process more to end
    spec = EngineSpec(tiny_model, "tiny", tmp_path / "engine.log", args, SMALL_ENGINE_ENV, capture)
    ended = [uuid.uuid4().hex for _ in range(24)]
    stopped = [uuid.uuid4().hex for _ in range(8)]
    with Engine.start(spec) as engine:
        engine.wait_ready()
        async with httpx.AsyncClient(base_url=engine.url, timeout=300) as client:
            first = [complete(client, tag, ignore_eos=True, max_tokens=24) for tag in ended]
            # A stop string ends these: the tap only sees that nothing more comes.
            second = [complete(client, tag, stop=["e", "a", "t"]) for tag in stopped]
            await asyncio.gather(*first, *second)
        engine.stop()

    recover(capture.spool)
    batches = [b for path in closed_segments(capture.spool) for b in read_segment(path).batches]
    found = {tag for batch in batches for tag in batch.column("exchange_id").to_pylist()}
    assert set(ended) - found == set()
    assert set(stopped) - found == set()
