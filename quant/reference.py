"""What a model predicted before it was quantized, to compare with what it predicts after.

Shape suffixes: S all examples, B those of a batch, T tokens, N completion tokens, D width,
V vocabulary.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.calibration import Sample
from quant.compressor import batches_of, token_passage
from quant.paged import Keep, in_memory

CHUNK_VALUES = 2**24  # of (N, V) logits that are held at once


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of a model from what it was, means over completion tokens.

    Attributes:
        kl_nats: KL(before || after) over the whole vocabulary.
        top1_agreement: Share of tokens whose likeliest token is the same.
        tokens: How many were compared.
    """

    kl_nats: float
    top1_agreement: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Reference:
    """A model's predictions of the completion tokens of a sample, kept as the head's inputs.

    Attributes:
        sample: What the model was run on.
        batch_tokens: Padded tokens per forward pass.
        hidden_ND: Inputs of the output head.
        head_VD: Its weights.
        keep: Where states of models are kept.
    """

    sample: Sample
    batch_tokens: int
    hidden_ND: Tensor
    head_VD: Tensor
    keep: Keep = in_memory

    @classmethod
    @torch.inference_mode()
    def of(
        cls, model: PreTrainedModel, sample: Sample, batch_tokens: int, keep: Keep = in_memory
    ) -> Self | None:
        """Run the model once; None if the sample has no completion token to compare."""
        hidden_ND = _hidden(model, sample, batch_tokens, keep)
        if not len(hidden_ND):
            return None
        hidden_ND = keep(hidden_ND)
        return cls(sample, batch_tokens, hidden_ND, model.get_output_embeddings().weight, keep)

    @torch.inference_mode()
    def compare(self, model: PreTrainedModel) -> Divergence:
        """Run a model of the same vocabulary on the same sample."""
        hidden_ND = _hidden(model, self.sample, self.batch_tokens, self.keep)
        head = model.get_output_embeddings()
        rows = max(1, CHUNK_VALUES // len(self.head_VD))
        kl, agreed = 0.0, 0
        for before_ND, after_ND in zip(
            torch.split(self.hidden_ND, rows), torch.split(hidden_ND, rows), strict=True
        ):
            before_NV = (before_ND @ self.head_VD.T).float().log_softmax(dim=-1)
            after_NV = head(after_ND).float().log_softmax(dim=-1)
            kl += float((before_NV.exp() * (before_NV - after_NV)).sum())
            agreed += int((before_NV.argmax(dim=-1) == after_NV.argmax(dim=-1)).sum())
        tokens = len(hidden_ND)
        return Divergence(kl / tokens, agreed / tokens, tokens)


def _hidden(model: PreTrainedModel, sample: Sample, batch_tokens: int, keep: Keep) -> Tensor:
    """Inputs of the output head where it predicts a completion token: ``(N, D)``."""
    batches = list(batches_of(sample.sequences, batch_tokens))
    starts_S1 = torch.tensor(sample.prompt_lengths)[:, None]
    first, found = 0, []
    results = token_passage(model, batches, keep).results()
    for (token_ids_BT, is_real_BT), hidden_BTD in zip(batches, results, strict=True):
        starts_B1 = starts_S1[first : first + len(token_ids_BT)]
        first += len(token_ids_BT)
        places_T = torch.arange(token_ids_BT.shape[1])
        ends_B1 = is_real_BT.sum(dim=1, keepdim=True)
        found.append(hidden_BTD[(places_T >= starts_B1 - 1) & (places_T < ends_B1 - 1)])
    return torch.cat(found)
