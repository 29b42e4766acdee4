"""One real vLLM, with the tap, for every test that needs one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec
from capture.host import SMALL_ENGINE_ARGS, SMALL_ENGINE_ENV, this_host
from tests.support.tiny_model import make_tiny_model

ARGS = (
    *SMALL_ENGINE_ARGS,
    *("--dtype", "float32", "--max-model-len", "512"),
    *("--max-num-seqs", "16", "--max-num-batched-tokens", "64", "--logprobs-mode", "raw_logprobs"),
    *(("--gpu-memory-utilization", "0.1") if this_host() == "cuda" else ()),  # several share one
)


@dataclass(frozen=True)
class Tapped:
    """A running engine, its model and where its tap writes."""

    url: str
    model: Path
    spool: Path
    dtype: torch.dtype = torch.float32


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def tapped_engine(model: Path, home: Path, args: tuple[str, ...]) -> Iterator[Tapped]:
    """Run an engine with the tap."""
    capture = CaptureConfig(spool=home / "spool", k_max=8, mass=0.9, segment_seconds=0.2)
    spec = EngineSpec(model, "tiny", home / "engine.log", args, SMALL_ENGINE_ENV, capture)
    with Engine.start(spec) as engine:
        engine.wait_ready()
        dtype = torch.bfloat16 if "bfloat16" in args else torch.float32
        yield Tapped(engine.url, model, capture.spool, dtype)


@pytest.fixture(scope="session")
def tapped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    yield from tapped_engine(tiny_model, tmp_path_factory.mktemp("tapped"), ARGS)


@pytest.fixture(
    scope="session",
    params=[("--async-scheduling",), ("--no-async-scheduling", "--dtype", "bfloat16")],
    ids=["async", "sync-bfloat16"],
)
def cramped(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Tapped]:
    """An engine that has to preempt: its cache holds a few of its requests at a time."""
    args = (*ARGS, *request.param, "--block-size", "32", "--num-gpu-blocks-override", "20")
    yield from tapped_engine(tiny_model, tmp_path_factory.mktemp("cramped"), args)
