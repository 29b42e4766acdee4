"""A candidate may do its worst in shadow: clients are answered as before, memory stays bounded."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from quant.bundle import Lineage, publish
from tests.gateway.test_relay import chat
from tests.support import fake_vllm
from tests.support.gateway_process import Gateway, configure, started

CHAT = "/v1/chat/completions"
CLIENTS, REQUESTS = 4, 30  # of each client
GOES = 3  # a machine that stalls once does not stall in each of them
PACE_SECONDS = 0.02  # of a word; an answer has ten
WORDS = " ".join(["word"] * 10)
ROUTE = """
[gateway.routes.support.rollout]
mirror_queue_bytes = 1_000_000
[gateway.routes.support.guards]
error_rate_max = 1
agreement_min = 0
worst_slice_agreement_min = 0
format_validity_min = 0
slow_share_max = 1
min_pairs = 100_000
"""
BAD: dict[str, dict[str, Any]] = {
    "hangs": {"spells": ["hang"]},
    "takes ten times as long": {"pace_seconds": 10 * PACE_SECONDS},
    "answers 500": {"spells": ["fail"]},
    "answers garbage": {"spells": ["garbage"]},
    "breaks off": {"spells": ["break"]},
    "never ends": {"spells": ["flood"]},
    "runs out of memory": {"spells": ["die"]},
    "never scores": {"scoring": "hang"},
}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Gateway]]:
    """One to try candidates, and its like that tries none."""
    with ExitStack() as stack:
        both = []
        for name in ("trying", "quiet"):
            folder = tmp_path_factory.mktemp(name)
            config = configure(folder, route=ROUTE)
            fake_vllm.model(folder / "model", answer=WORDS, pace_seconds=PACE_SECONDS)
            both.append(stack.enter_context(started(config)))
        for gateway in both:
            gateway.wait_ready()
        yield both[0], both[1]


async def slowest(gateway: Gateway) -> float:
    """The 99th percentile of answers' times, in seconds; all of them must be whole."""
    loop = asyncio.get_running_loop()

    async def ask(client: httpx.AsyncClient) -> list[float]:
        seconds = []
        for _ in range(REQUESTS):
            began = loop.time()
            answer = await client.post(CHAT, json=chat("hi", stream=True, temperature=0))
            assert answer.text.endswith("data: [DONE]\n\n")
            seconds.append(loop.time() - began)
        return seconds

    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        asked = await asyncio.gather(*(ask(client) for _ in range(CLIENTS)))
    return float(np.percentile(np.concatenate(asked), 99))


def resident_bytes(gateway: Gateway) -> int:
    """Memory of the gateway's process."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmRSS")).split()[1])


@pytest.mark.parametrize("how", sorted(BAD))
async def test_a_candidate_that(gateways: tuple[Gateway, Gateway], how: str) -> None:
    gateway, quiet = gateways
    draft = gateway.folder / f"{how} draft"
    behaviour = {"answer": WORDS, "pace_seconds": PACE_SECONDS, **BAD[how]}
    bundle = gateway.folder / how.replace(" ", "-")
    publish(
        fake_vllm.model(draft, **behaviour), bundle, lineage=Lineage(), parameters=1, quality={}
    )
    goes = []
    for _ in range(GOES):
        memory = resident_bytes(gateway)
        async with gateway.operator() as admin:
            body = {"route": "support", "bundle": str(bundle)}
            rollout = (await admin.post("/admin/rollouts", json=body)).json()
            assert "id" in rollout, rollout
            goes.append(await asyncio.gather(slowest(gateway), slowest(quiet)))
            grown = resident_bytes(gateway) - memory
            shown = (await admin.get(f"/admin/rollouts/{rollout['id']}")).json()
            if shown["state"] == "shadow":
                await admin.post(f"/admin/rollouts/{rollout['id']}/rollback", json={})
            metrics = (await admin.get(gateway.url + "/metrics")).text

        assert grown < 50_000_000
        assert f'deployment="{rollout["candidate"]}"' in metrics
        assert (shown["state"] == "rolled_back") == (how == "runs out of memory")
        if goes[-1][0] < 1.5 * goes[-1][1] + 0.1:
            return
    pytest.fail(f"clients waited; with the candidate and without, in seconds: {goes}")
