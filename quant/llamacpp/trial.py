"""Proof that llama.cpp runs a file: it generates, and computes what we computed."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from quant.agreement import MOST_NATS, Agreement, agree
from quant.calibration import Tokens
from quant.errors import CompressionError
from quant.heldout import Figures
from quant.llamacpp.making import FILE, quiet
from quant.serving import SEQUENCES, context_length
from trainer.student import open_teacher

GENERATED = 8


def try_llama(
    folder: Path,
    model: PreTrainedModel,
    sequences: Sequence[Tokens],
    checkpoint: Path,
    threads: int,
) -> Figures:
    """Load a bundle in llama.cpp, generate, and compare log-probabilities.

    Args:
        folder: Of the bundle.
        model: The weights it holds, in this process.
        sequences: Token ids to compare on.
        checkpoint: Folder of the model it was made of.
        threads: Of llama.cpp.

    Returns:
        ``engine_logprob_mean_nats`` and ``engine_logprob_max_nats``, from the model's own
        arithmetic, and the same from the checkpoint's, ``checkpoint_logprob_...``.

    Raises:
        CompressionError: If it does not load, does not stop where it should, or computes
            something else.
    """
    context = context_length(folder)
    seen = [each[:context] for each in sequences if len(each) > 1][-SEQUENCES:]
    with closing(open_llama(folder / FILE, context, threads)) as llama:
        _check_ends(llama, folder)
        list(zip(range(GENERATED), llama.generate(seen[0].tolist(), temp=0.0), strict=False))
        ours = agree(lambda ids: llama_logprobs(llama, ids), model, seen)
        parent = open_teacher(checkpoint, torch.device("cpu"))
        theirs = agree(lambda ids: llama_logprobs(llama, ids), parent, seen)
    if not ours.mean_difference <= MOST_NATS:
        raise CompressionError(
            "llama.cpp computes something else than the file says: log-probabilities of "
            f"{ours.tokens} tokens differ by {ours.mean_difference:.3f} nats in the mean, expected "
            f"at most {MOST_NATS}"
        )
    return _figures("engine", ours) | _figures("checkpoint", theirs)


def open_llama(path: Path, context: int, threads: int) -> llama_cpp.Llama:
    """Load a file so that every position's scores can be read.

    Keys and values are kept in float32: in float16, as when it serves, they move an input here and
    there to the other side of a step, and with it all that follows.

    Raises:
        CompressionError: If llama.cpp cannot.
    """
    quiet()
    try:
        return llama_cpp.Llama(
            model_path=str(path),
            n_ctx=context,
            n_batch=context,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            flash_attn=False,
            verbose=False,
        )
    except ValueError as error:
        raise CompressionError(f"{path.name}: llama.cpp does not load it: {error}") from error


def llama_logprobs(llama: llama_cpp.Llama, sequence: Tokens) -> np.ndarray:
    """Log-probability of every token after the first of a sequence: ``(T - 1,)``."""
    llama.reset()
    llama.eval(sequence.tolist())
    logits_TV = torch.from_numpy(llama.scores[: len(sequence) - 1].copy())
    ids_T = torch.from_numpy(sequence[1:])
    picked: np.ndarray = logits_TV.log_softmax(dim=-1).gather(1, ids_T[:, None])[:, 0].numpy()
    return picked


def _check_ends(llama: llama_cpp.Llama, folder: Path) -> None:
    """See that llama.cpp ends an answer at every token at which the model's answers end."""
    if (folder / "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
    else:
        ends = json.loads((folder / "config.json").read_text()).get("eos_token_id")
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    for token in [ends] if isinstance(ends, int) else ends or []:
        if not llama_cpp.llama_vocab_is_eog(vocabulary, token):
            raise CompressionError(
                f"answers of the model end with token {token}, and llama.cpp would go on there; "
                "make it the tokenizer's eos_token"
            )


def _figures(name: str, agreement: Agreement) -> Figures:
    return {
        f"{name}_logprob_mean_nats": agreement.mean_difference,
        f"{name}_logprob_max_nats": agreement.largest_difference,
    }
