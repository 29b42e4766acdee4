"""Proof that the real engine serves a folder: it generates, and computes what we computed."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx
from transformers import PreTrainedModel

from capture.engine import Engine, EngineSpec
from capture.host import SMALL_ENGINE_ENV
from quant.agreement import MOST_NATS, agree, vllm_logprobs
from quant.calibration import Tokens
from quant.config import QuantConfig
from quant.errors import CompressionError

MAX_TOKENS = 256  # of the trial's context; enough to generate, little to allocate
SEQUENCES = 16  # that engine and checkpoint are compared on


def try_serving(
    folder: Path,
    model: PreTrainedModel,
    sequences: Sequence[Tokens],
    config: QuantConfig,
    log_path: Path,
) -> dict[str, float]:
    """Start vLLM on a folder, let it generate and compare its log-probabilities with the model's.

    Args:
        folder: A model folder.
        model: The same in this process.
        sequences: Token ids to compare on.
        config: Flags, environment and patience.
        log_path: File for what the engine prints; removed if it serves.

    Returns:
        How far they are apart: ``engine_logprob_mean_nats`` and ``engine_logprob_max_nats``.

    Raises:
        EngineError: If it does not generate in time; with the end of its log.
        CompressionError: If it does, and computes something else.
    """
    with Engine.start(trial_spec(folder, config, log_path)) as engine:
        engine.wait_ready(config.engine_timeout_seconds)
        figures = examine(engine, model, sequences)
    log_path.unlink()
    return figures


def examine(
    engine: Engine, model: PreTrainedModel, sequences: Sequence[Tokens]
) -> dict[str, float]:
    """Compare a ready engine's log-probabilities with those of the model it serves.

    Raises:
        CompressionError: If it gives none, or others.
    """
    context = context_length(engine.spec.model)
    seen = [each[: context - 1] for each in sequences if len(each) > 1][-SEQUENCES:]
    log_path = engine.spec.log_path
    try:
        asked = partial(vllm_logprobs, engine.url, engine.spec.served_name)
        agreement = agree(asked, model, seen)
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise CompressionError(
            f"vLLM generates with the bundle, but gives no log-probabilities of a prompt: "
            f"{error!r}; its output is in {log_path}"
        ) from error
    if not agreement.mean_difference <= MOST_NATS:
        raise CompressionError(
            "vLLM computes something else than the bundle says: log-probabilities of "
            f"{agreement.tokens} tokens differ by {agreement.mean_difference:.3f} nats in the "
            f"mean, expected at most {MOST_NATS}; its output is in {log_path}"
        )
    return {
        "engine_logprob_mean_nats": agreement.mean_difference,
        "engine_logprob_max_nats": agreement.largest_difference,
    }


def trial_spec(folder: Path, config: QuantConfig, log_path: Path) -> EngineSpec:
    """Return what to start: a short context, as many threads as this process has."""
    args = ("--max-model-len", str(context_length(folder)), *config.engine_args)
    env = {**SMALL_ENGINE_ENV, "OMP_NUM_THREADS": str(config.threads), **config.engine_env}
    return EngineSpec(folder, "trial", log_path, args, env)


def context_length(folder: Path) -> int:
    """Tokens that a trial's prompt and answer may have together."""
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return min(int(model.get("max_position_embeddings", MAX_TOKENS)), MAX_TOKENS)
