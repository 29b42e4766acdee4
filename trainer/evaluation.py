"""How close a student is to its teacher on held-out rows of the log."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from trainer.dataset import Dataset, Ints
from trainer.losses import behaviour_cloning, forward_kl
from trainer.packing import collate, epoch_batches
from trainer.student import completion_logits


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over completion tokens.

    Attributes:
        kl_to_teacher_nats: KL(teacher || student) over the logged entries and one tail class.
        top1_agreement: Share of tokens whose likeliest token is the teacher's.
        cross_entropy: Of the tokens that were generated, in nats.
        rows: Examples measured.
        tokens: Completion tokens measured.
    """

    kl_to_teacher_nats: float
    top1_agreement: float
    cross_entropy: float
    rows: int
    tokens: int


@torch.inference_mode()
def evaluate(student: PreTrainedModel, dataset: Dataset, rows: Ints, batch_tokens: int) -> Quality:
    """Measure the student in the precision of its weights."""
    student.eval()
    device = student.device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for positions in epoch_batches(dataset.lengths[rows], batch_tokens, (0, 0)):
        batch = collate(dataset, rows[positions], device)
        logits_NV = completion_logits(student, batch)
        hits_N = logits_NV.argmax(dim=-1) == batch.targets.topk_ids_NK[:, 0]
        per_token = (
            forward_kl(logits_NV, batch.targets),
            hits_N,
            behaviour_cloning(logits_NV, batch.targets),
        )
        sums += torch.stack([values_N.double().sum() for values_N in per_token])
    tokens = int(dataset.completion_ids.lengths[rows].sum())
    kl, agreement, cross_entropy = (sums / tokens).tolist()
    return Quality(kl, agreement, cross_entropy, len(rows), tokens)
