"""One real vLLM, with the tap, for every test that needs one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec
from tests.support.tiny_model import make_tiny_model

ARGS = (
    *("--enforce-eager", "--dtype", "float32", "--max-model-len", "512"),
    *("--max-num-seqs", "16", "--max-num-batched-tokens", "64", "--logprobs-mode", "raw_logprobs"),
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Tapped:
    """A running engine, its model and where its tap writes."""

    url: str
    model: Path
    spool: Path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tapped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    home = tmp_path_factory.mktemp("tapped")
    capture = CaptureConfig(spool=home / "spool", k_max=8, mass=0.9, segment_seconds=0.2)
    spec = EngineSpec(tiny_model, "tiny", home / "engine.log", ARGS, ONE_THREAD, capture)
    with Engine.start(spec) as engine:
        engine.wait_ready()
        yield Tapped(engine.url, tiny_model, capture.spool)
