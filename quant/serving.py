"""Proof that the real engine serves a folder: it loads it and generates from it."""

import json
from pathlib import Path

from capture.engine import Engine, EngineSpec
from capture.host import SMALL_ENGINE_ENV
from quant.config import QuantConfig

MAX_TOKENS = 256  # of the trial's context; enough to generate, little to allocate


def try_serving(folder: Path, config: QuantConfig, log_path: Path) -> None:
    """Start vLLM on the folder and return once it has generated; the engine is gone then.

    Args:
        folder: A model folder.
        config: Flags, environment and patience.
        log_path: File for what the engine prints; removed if it serves.

    Raises:
        EngineError: If it does not generate in time; with the end of its log.
    """
    with Engine.start(trial_spec(folder, config, log_path)) as engine:
        engine.wait_ready(config.engine_timeout_seconds)
    log_path.unlink()


def trial_spec(folder: Path, config: QuantConfig, log_path: Path) -> EngineSpec:
    """Return what to start: a short context, as many threads as this process has."""
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    length = min(model.get("max_position_embeddings", MAX_TOKENS), MAX_TOKENS)
    args = ("--max-model-len", str(length), *config.engine_args)
    env = {**SMALL_ENGINE_ENV, "OMP_NUM_THREADS": str(config.threads), **config.engine_env}
    return EngineSpec(folder, "trial", log_path, args, env)
