"""Bundles that a real vLLM cannot serve, or would serve wrongly, never see a client."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from quant.bundle import Lineage, publish
from tests.integration.test_rollout import configure
from tests.support.gateway_process import Gateway
from tests.support.retort import address, serving
from tests.support.tiny_model import TEMPLATE, make_tiny_model

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("bad_bundles")
    config = configure(folder, make_tiny_model(folder / "tiny"))
    with serving(config) as process:
        yield Gateway(folder, process)


def of_another_width(draft: Path) -> None:
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "hidden_size": 96}))


def with_nan(draft: Path) -> None:
    (path,) = draft.glob("*.safetensors")
    weights = load_file(path)
    weights["model.layers.0.mlp.down_proj.weight"].fill(float("nan"))
    save_file(weights, path, metadata={"format": "pt"})


def of_another_template(draft: Path) -> None:
    (draft / "chat_template.jinja").write_text("<|system|>be brief" + TEMPLATE)


@pytest.mark.parametrize(
    ("spoil", "status", "reason"),
    [
        (of_another_width, 502, "ended before it was ready"),
        (with_nan, 502, "its logits are no numbers"),
        (of_another_template, 400, "chat template"),
    ],
)
async def test_it_is_refused_with_its_reason(
    gateway: Gateway, tmp_path: Path, spoil: Callable[[Path], None], status: int, reason: str
) -> None:
    draft = make_tiny_model(tmp_path / "draft")
    spoil(draft)
    publish(draft, tmp_path / "bundle", lineage=Lineage(), parameters=1, quality={})

    async with gateway.operator() as admin:
        admin.timeout = httpx.Timeout(300)
        body = {"route": "tiny", "bundle": str(tmp_path / "bundle")}
        answer = await admin.post("/admin/rollouts", json=body)
        deployments = (await admin.get("/admin/deployments")).json()["data"]
    async with httpx.AsyncClient(base_url=address(gateway.config), timeout=60) as client:
        asked = {"model": "tiny", "prompt": "a", "max_tokens": 2}
        served = await client.post("/v1/completions", json=asked)

    assert answer.status_code == status
    assert reason in answer.json()["error"]["message"]
    assert [deployment["role"] for deployment in deployments] == ["incumbent"]
    assert served.headers["x-retort-deployment"] == "tiny-teacher"
