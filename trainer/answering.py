"""A student's answers to prompts of token ids, sampled in this process.

Shape suffixes: B prompts, T tokens (left-padded).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from trainer.errors import DatasetError
from trainer.precision import fast_products

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        temperature: 1 is the student's own distribution, 0 its likeliest token.
        max_new_tokens: Longest answer.
    """

    temperature: float
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered prompt.

    Attributes:
        prompt_ids: As asked.
        completion_ids: At least one; the token that ends it is among them, as an engine has it.
        finish_reason: ``stop`` or ``length``.
    """

    prompt_ids: Tokens
    completion_ids: Tokens
    finish_reason: str


Answerer = Callable[[Sequence[Tokens]], list[Answer]]


def end_ids(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """Tokens that end an answer of the model in a folder: all that anything in it names.

    vLLM stops at its tokenizer's and at those of ``generation_config.json`` or, where there is no
    such file, of ``config.json``.
    """
    files = [folder / name for name in ("generation_config.json", "config.json")]
    named = [*(end for file in files for end in ends_in(file)), tokenizer.eos_token_id]
    return [end for end in dict.fromkeys(named) if end is not None]


def ends_in(file: Path) -> list[int]:
    """Tokens that one file of a model names as the end; none where it is not there."""
    if not file.is_file():
        return []
    found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    return found if isinstance(found, list) else [found] if found is not None else []


@torch.inference_mode()
def sample_answers(
    student: PreTrainedModel, ends: Sequence[int], sampling: Sampling, prompts: Sequence[Tokens]
) -> list[Answer]:
    """Let a student answer some prompts side by side; torch's generator is moved on.

    What its folder says of sampling (``top_p``, penalties) is not applied: the states to learn
    from are those of the plain distribution.

    Raises:
        DatasetError: If a prompt leaves no room for an answer.
    """
    lengths = [len(prompt) for prompt in prompts]
    width, context = max(lengths), student.config.max_position_embeddings
    room = min(sampling.max_new_tokens, context - width)
    if room < 1:
        raise DatasetError(
            f"a prompt has {width} tokens, the student takes {context} with the answer: leave "
            f'long ones out with `where`, such as where = "len(prompt_ids) < {context}"'
        )
    token_ids_BT = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask_BT = torch.zeros_like(token_ids_BT)
    for line, prompt in enumerate(prompts):
        token_ids_BT[line, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask_BT[line, width - len(prompt) :] = 1
    with _generating(student, _generation(ends, sampling, room)), fast_products(student.device):
        found_BT = student.generate(
            token_ids_BT.to(student.device), attention_mask=mask_BT.to(student.device)
        )
    completions = found_BT[:, width:].cpu().numpy().astype(np.int32)
    return [_answer(*pair, ends) for pair in zip(prompts, completions, strict=True)]


@contextmanager
def _generating(student: PreTrainedModel, wanted: GenerationConfig) -> Iterator[None]:
    """Replace the student's own settings for a while: its checkpoint is written with them.

    Passed to ``generate``, what is left unset would come from the student's own.
    """
    own, student.generation_config = student.generation_config, wanted
    try:
        yield
    finally:
        student.generation_config = own


def _generation(ends: Sequence[int], sampling: Sampling, room: int) -> GenerationConfig:
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=room,
        eos_token_id=list(ends) or None,
        pad_token_id=0,  # behind the end and in front of the mask; read by nobody
        **(drawn if sampling.temperature else {"do_sample": False}),
    )


def _answer(prompt: Tokens, completion: Tokens, ends: Sequence[int]) -> Answer:
    """Cut what follows the end."""
    stops = np.flatnonzero(np.isin(completion, ends))
    if not len(stops):
        return Answer(prompt, completion, "length")
    return Answer(prompt, completion[: stops[0] + 1], "stop")
