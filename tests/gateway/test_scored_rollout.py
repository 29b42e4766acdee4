"""A gateway before fake engines: what a candidate makes of its incumbent's answers gets into the
log."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from capture.config import load
from capture.log import Log, query
from capture.store import LogFolder
from capture.verify import verify
from quant.bundle import Lineage, publish
from tests.gateway.test_relay import chat
from tests.support import fake_vllm
from tests.support.gateway_process import Gateway, configure, started

ROUTE = """
[gateway.routes.support.guards]
min_pairs = 100_000
"""
NUM_ASKED = 10

pytestmark = pytest.mark.timeout(120)


async def ask_until_scored(gateway: Gateway) -> str:
    """Ask until some answers are scored; returns the metrics."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        while True:
            for _ in range(NUM_ASKED):
                await client.post("/v1/chat/completions", json=chat("hi", temperature=0))
            metrics = (await client.get("/metrics")).text
            if 'outcome="scored"' in metrics:
                return metrics


async def pairs(folder: LogFolder) -> list[dict[str, Any]]:
    """Scored pairs in the log, as soon as there are some."""
    while True:
        with Log(folder).connect() as connection:
            rows = query(connection, "from pairs where is_scored").to_pylist()
        if rows:
            return list(rows)
        await asyncio.sleep(0.2)


@pytest.mark.parametrize(("capture", "num_tokens"), [("full", 3), ("wire", 2)])
async def test_scores_are_counted_and_logged(tmp_path: Path, capture: str, num_tokens: int) -> None:
    config = configure(tmp_path, route=f'capture = "{capture}"\n{ROUTE}')
    draft = fake_vllm.model(tmp_path / "draft")
    publish(draft, tmp_path / "bundle", lineage=Lineage(), parameters=1, quality={})
    with started(config) as gateway:
        gateway.wait_ready()
        async with gateway.operator() as admin, asyncio.timeout(60):
            body = {"route": "support", "bundle": str(tmp_path / "bundle")}
            assert (await admin.post("/admin/rollouts", json=body)).status_code == 201
            metrics = await ask_until_scored(gateway)
            found = await pairs(load(config).log)

    assert "retort_pair_kl_nats_count{" in metrics
    for pair in found:
        assert pair["compared_tokens"] == num_tokens
        assert pair["kl_nats"] == pytest.approx(sum(pair["token_kl_nats"]) / num_tokens)
    assert verify(load(config)).problems == []
