"""Whether the engine computes with a bundle what the checkpoint's own arithmetic says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import httpx
import numpy as np
import torch
from transformers import PreTrainedModel

from quant.blocks import block_by_block
from quant.calibration import Tokens
from quant.paged import in_memory

# bfloat16 alone: 0.004 in the mean; INT8: 0.008. See docs/quantize.md.
MOST_NATS = 0.05
ASK_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two sets of log-probabilities of the same tokens, in nats."""

    mean_difference: float
    largest_difference: float
    tokens: int


def agree(
    engines_logprobs: Callable[[Tokens], np.ndarray],
    model: PreTrainedModel,
    sequences: Sequence[Tokens],
) -> Agreement:
    """Compare the log-probability of every token after the first of each sequence.

    Args:
        engines_logprobs: What an engine that runs the bundle says of a sequence: ``(T - 1,)``.
        model: The bundle's arithmetic in this process.
        sequences: Of at least two tokens.
    """
    own = block_by_block(model, in_memory, partial(own_logprobs, model), sequences)
    differences = [
        np.abs(engines_logprobs(sequence) - ours)
        for sequence, ours in zip(sequences, own, strict=True)
    ]
    together = np.concatenate(differences)
    return Agreement(float(together.mean()), float(together.max()), len(together))


def vllm_logprobs(url: str, served_name: str, sequence: Tokens) -> np.ndarray:
    """Ask a running vLLM for the log-probability of every token after the first: ``(T - 1,)``.

    Raises:
        httpx.HTTPError: If it does not answer.
    """
    ids = sequence.tolist()
    body = {"model": served_name, "prompt": ids, "max_tokens": 1, "temperature": 0}
    answer = httpx.post(
        f"{url}/v1/completions",
        json={**body, "prompt_logprobs": 0},
        timeout=ASK_TIMEOUT_SECONDS,
        trust_env=False,
    )
    answer.raise_for_status()
    entries = answer.json()["choices"][0]["prompt_logprobs"][1:]
    return np.array(
        [entry[str(token)]["logprob"] for entry, token in zip(entries, ids[1:], strict=True)]
    )


@torch.inference_mode()
def own_logprobs(model: PreTrainedModel, sequence: Tokens) -> np.ndarray:
    """Log-probability of every token after the first of a sequence: ``(T - 1,)``."""
    ids_1T = torch.from_numpy(sequence)[None]
    logprobs_TV = model(ids_1T, use_cache=False).logits[0].float().log_softmax(dim=-1)
    picked: np.ndarray = logprobs_TV[:-1].gather(1, ids_1T[0, 1:, None])[:, 0].numpy()
    return picked
