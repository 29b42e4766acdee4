import statistics
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from transformers import PreTrainedModel

from capture.engine import Engine
from capture.errors import EngineError
from capture.host import SMALL_ENGINE_ARGS, largest_int8_weight
from quant.compressor import linear_layers, quantize_layers
from quant.config import QuantConfig
from quant.quantization import Quantization
from quant.schemes import find_scheme
from quant.screen import Screen
from quant.serving import trial_spec
from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.student import open_teacher

CONFIG = QuantConfig(
    calibration_rows=16,
    engine_args=(*SMALL_ENGINE_ARGS, "--max-num-seqs", "4", "--dtype", "float32"),
)


@dataclass(frozen=True)
class Prepared:
    model: Path
    job: Quantization


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    model = make_tiny_model(tmp_path_factory.mktemp("quant") / "model", hidden_size=192)
    table = answer(model, 24, tokens=3)
    job = Quantization.prepare(model, find_scheme("int8", "cpu"), CONFIG, table, {})
    return Prepared(model, job)


def test_what_the_engine_refuses_is_not_published(prepared: Prepared, tmp_path: Path) -> None:
    seen: list[str] = []

    def refuse(draft: Path) -> None:
        seen.extend(sorted(path.name for path in draft.iterdir()))
        raise EngineError("no kernel")

    with Screen.opened() as screen, pytest.raises(EngineError, match="no kernel"):
        prepared.job.run(tmp_path / "bundle", refuse, screen)

    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(seen)
    assert not list(tmp_path.iterdir())


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_vllm_computes_what_was_measured(prepared: Prepared, tmp_path: Path) -> None:
    with Screen.opened() as screen:
        prepared.job.run(tmp_path / "bundle", None, screen)
    original = open_teacher(prepared.model, torch.device("cpu"))
    simulated = open_teacher(prepared.model, torch.device("cpu"))
    sequences = prepared.job.calibration.sequences
    limit = largest_int8_weight()
    quantize_layers(simulated, linear_layers(simulated), sequences, 256, lambda: None, limit)
    spec = trial_spec(tmp_path / "bundle", CONFIG, tmp_path / "engine.log")
    prompts = [sequence.tolist() for sequence in sequences[-8:]]

    with Engine.start(spec) as engine:
        engine.wait_ready()
        served = [ask(engine.url, prompt) for prompt in prompts]

    to_simulated = differences(served, prompts, simulated)
    to_original = differences(served, prompts, original)
    # An activation halfway between two steps may fall to either side, in few of the prompts.
    assert statistics.median(to_simulated) < 1e-3
    assert statistics.mean(to_original) > 10 * statistics.mean(to_simulated)


def ask(url: str, prompt: list[int]) -> dict[int, float]:
    """Log-probabilities of the likeliest next tokens."""
    body = {"model": "trial", "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5}
    body["return_tokens_as_token_ids"] = True
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False).json()
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return {int(name.removeprefix("token_id:")): value for name, value in top.items()}


@torch.inference_mode()
def differences(
    served: list[dict[int, float]], prompts: list[list[int]], model: PreTrainedModel
) -> list[float]:
    """The largest of each prompt, in nats."""
    largest = []
    for top, prompt in zip(served, prompts, strict=True):
        logprobs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        largest.append(max(abs(float(logprobs[token]) - value) for token, value in top.items()))
    return largest
