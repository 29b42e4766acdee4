"""A bundle that would refuse what its route's model takes is refused before its engine starts."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.config import RouteConfig
from gateway.rollout import Rollout, promote
from gateway.starter import Starter, check_context
from gateway.state import StateStore
from quant.bundle import BundleError
from tests.gateway.test_relay import stand
from tests.gateway.test_shared_rollouts import bundle
from tests.support import fake_vllm
from tests.support.idle_fleet import IdleFleet

SCALED = {"max_position_embeddings": 256, "rope_scaling": {"rope_type": "yarn", "factor": 4}}


def context(length: int) -> dict[str, Any]:
    return {"max_position_embeddings": length}


def made(folder: Path, ours: dict[str, Any], theirs: dict[str, Any], *args: str) -> RouteConfig:
    """A route of a model with one configuration, and ``folder / "bundle"`` with another."""
    model = fake_vllm.model(folder / "model", theirs)
    bundle(folder, config=ours)
    return RouteConfig.model_validate({"model": str(model), "engine": {"args": args}})


def test_one_with_a_shorter_context_is_refused(tmp_path: Path) -> None:
    config = made(tmp_path, context(512), context(1024))
    with pytest.raises(BundleError, match=r"at most 512 tokens.*takes 1024.*--max-model-len"):
        check_context(tmp_path / "bundle", config)


@pytest.mark.parametrize("args", [("--max-model-len", "512"), ("--max_model_len=512",)])
def test_a_route_that_says_how_long_its_context_is_has_it_from_both(
    tmp_path: Path, args: tuple[str, ...]
) -> None:
    check_context(tmp_path / "bundle", made(tmp_path, context(512), context(1024), *args))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (context(1024), context(1024)),
        (context(2048), context(1024)),
        ({}, context(1024)),
        (context(512), {}),
        (SCALED, context(1024)),
        ({"text_config": context(2048)}, {"text_config": context(1024)}),
    ],
)
def test_one_that_takes_as_much_or_does_not_say_is_tried(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    check_context(tmp_path / "bundle", made(tmp_path, ours, theirs))


def test_a_context_inside_a_text_config_counts(tmp_path: Path) -> None:
    ours, theirs = ({"text_config": context(length)} for length in (512, 1024))
    with pytest.raises(BundleError, match="at most 512"):
        check_context(tmp_path / "bundle", made(tmp_path, ours, theirs))


async def test_one_that_is_live_already_is_started_again(tmp_path: Path) -> None:
    store = StateStore(f"sqlite:///{tmp_path / 'state.db'}")
    config = made(tmp_path, context(512), context(1024))
    now = datetime.now(UTC)
    shown = Rollout("r1", "support", str(tmp_path / "bundle"), "student", (), now)
    store.save(promote(shown, now), 0)
    async with stand(tmp_path) as s:
        s.serving.config.routes["support"] = config
        starter = Starter(s.serving, IdleFleet(tmp_path), store)
        incumbent = await starter.incumbent("support")
        with pytest.raises(BundleError, match="at most 512"):
            await starter.candidate(shown)

    assert incumbent.name == "student"
