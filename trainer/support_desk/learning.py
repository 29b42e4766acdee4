"""The teacher's training: next-token loss on messages and their right answers.

Shape suffixes: B messages, T tokens (right-padded), V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import LlamaForCausalLM

from trainer.packing import epoch_batches
from trainer.precision import fast_products
from trainer.support_desk.message import Message
from trainer.support_desk.muon import Muon
from trainer.support_desk.tokenizer import END, PAD_ID, encode, prompt_text

BETAS = (0.9, 0.98)
MOMENTUM = 0.95
WEIGHT_DECAY = 0.02  # of the matrices that Muon updates
MAX_GRAD_NORM = 1.0
PROMPT_WEIGHT = 0.1  # of the loss on the customer's words, which teaches what words go together


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the model is trained; a run's length follows from these and the data, never the clock.

    Attributes:
        batch_tokens: Padded tokens per step.
        warmup: Steps.
        average_kept: Share of the averaged weights that each step keeps.
    """

    epochs: int = 1
    batch_tokens: int = 2048
    learning_rate: float = 2.5e-3
    warmup: int = 50
    average_kept: float = 0.98


@dataclass(frozen=True, slots=True)
class Example:
    """One message as ids.

    Attributes:
        prompt_ids: Up to the answer's start.
        answer_ids: The answer, its end included.
    """

    prompt_ids: list[int]
    answer_ids: list[int]

    def __len__(self) -> int:
        """Tokens."""
        return len(self.prompt_ids) + len(self.answer_ids)


def encode_examples(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Example]:
    """Turn messages into ids, as the chat template does."""
    prompts = encode(tokenizer, [prompt_text(message) for message in messages])
    answers = encode(tokenizer, [f"{message.ticket.to_json()}{END}" for message in messages])
    return [Example(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def train(
    model: LlamaForCausalLM,
    examples: Sequence[Example],
    recipe: Recipe,
    seed: int,
    advance: Callable[[int, int], None],
) -> int:
    """Train in place; the model ends up with its averaged weights.

    Args:
        model: Float32.
        examples: What it learns.
        recipe: How.
        seed: Of the order of the batches.
        advance: Called after each step with (step, steps).

    Returns:
        Tokens learned from, padding left out.
    """
    lengths = np.array([len(example) for example in examples])
    batches = [
        batch
        for epoch in range(recipe.epochs)
        for batch in epoch_batches(lengths, recipe.batch_tokens, (seed, epoch))
    ]
    optimizers = _optimizers(model)
    weights = list(model.parameters())
    averages = [weight.detach().clone() for weight in weights]
    for step, batch in enumerate(batches):
        rate = recipe.learning_rate * _rate_factor(step, len(batches), recipe.warmup)
        loss(model, [examples[index] for index in batch]).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - recipe.average_kept)
        advance(step + 1, len(batches))
    with torch.no_grad():
        torch._foreach_copy_(weights, averages)
    return recipe.epochs * int(lengths.sum())


def loss(model: LlamaForCausalLM, examples: Sequence[Example]) -> Tensor:
    """Return the mean next-token loss in nats; the customer's words weigh little."""
    width = max(map(len, examples))
    token_ids_BT = torch.full((len(examples), width), PAD_ID)
    weights_BT = torch.zeros(len(examples), width)
    for line, example in enumerate(examples):
        start, end = len(example.prompt_ids), len(example)
        token_ids_BT[line, :end] = torch.tensor(example.prompt_ids + example.answer_ids)
        weights_BT[line, :start] = PROMPT_WEIGHT
        weights_BT[line, start:end] = 1.0
    with fast_products(model.device):
        logits_BTV = model(token_ids_BT[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), token_ids_BT[:, 1:].flatten(), reduction="none"
    )
    weights = weights_BT[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _rate_factor(step: int, steps: int, warmup: int) -> float:
    """Return a share of the peak rate: up over the warm-up, down to 0 over the second half."""
    return min(1.0, (step + 1) / (warmup + 1), 2 * (steps - step) / steps)


def _optimizers(model: LlamaForCausalLM) -> tuple[Optimizer, Optimizer]:
    """Muon for the matrices inside the model, AdamW for the embedding and the norms' gains."""
    embedding = model.get_input_embeddings().weight
    inner = [w for w in model.parameters() if w.dim() > 1 and w is not embedding]
    others = [w for w in model.parameters() if w.dim() == 1]
    return (
        Muon(inner, 0.0, MOMENTUM, WEIGHT_DECAY),
        AdamW([embedding, *others], betas=BETAS, weight_decay=0.0, fused=True),
    )
