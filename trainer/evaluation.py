"""How close a student is to its teacher on held-out rows of the log."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.dataset import Dataset, Ints
from trainer.fused import each_seen
from trainer.losses import Targets, behaviour_cloning, classes, forward_kl
from trainer.packing import Batch, collate, epoch_batches
from trainer.student import completion_hidden
from trainer.student_view import Seen

NUM_BINS = 15  # of confidence; the number that papers use


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over completion tokens.

    What compares with the teacher's distribution is None where only the words of the rows are known
    and there is none: then the tokenizers differ, or every row is flagged.

    Attributes:
        kl_to_teacher_nats: KL(teacher || student) over the logged entries and one tail class.
        top1_agreement: Share of tokens whose likeliest token is the teacher's.
        exact_match: Share of answers that the student, decoding greedily, gives to the letter.
        metric: What weights are chosen by: ``exact_match``, or the mean of another one.
        metric_rows: Answers that it was taken over.
        cross_entropy: Of the tokens that were generated, in nats.
        mass_overlap: Mass that teacher and student give to the same classes.
        entropy_ratio: The student's entropy over the teacher's, over those classes.
        ece: Expected calibration error of the likeliest token being the one that was generated,
            over 15 bins of confidence.
        rows: Examples measured.
        tokens: Completion tokens measured.
    """

    kl_to_teacher_nats: float | None
    top1_agreement: float | None
    exact_match: float
    metric: float
    metric_rows: int
    cross_entropy: float
    mass_overlap: float | None
    entropy_ratio: float | None
    ece: float
    rows: int
    tokens: int

    @property
    def distance_nats(self) -> float:
        """How far from the teacher: KL, or the cross-entropy of its words where it has none."""
        kl = self.kl_to_teacher_nats
        return self.cross_entropy if kl is None else kl


Ran = tuple[Batch, Tensor]  # a batch and the head's inputs, (N, D)
RunAll = Callable[[Callable[[Ints], Ran], Sequence[Ints]], Iterator[Ran]]


@torch.inference_mode()
def evaluate(
    student: PreTrainedModel,
    dataset: Dataset,
    rows: Ints,
    batch_tokens: int,
    run_all: RunAll = map,
) -> Quality:
    """Measure the student in the precision of its weights.

    Args:
        student: The model.
        dataset: Rows with the teacher's distribution.
        rows: Which of them.
        batch_tokens: Padded tokens per forward pass.
        run_all: What calls a function on each batch in turn, as ``map`` does; one that knows more
            of the model may run it in another order.
    """

    def run(positions: Ints) -> Ran:
        batch = collate(dataset, rows[positions], device)
        return batch, completion_hidden(student, batch)

    student.eval()
    device = student.device
    sums = torch.zeros(7, dtype=torch.float64, device=device)
    bins = torch.zeros(2, NUM_BINS, dtype=torch.float64, device=device)
    num_exact = torch.zeros((), dtype=torch.int64, device=device)
    plan = epoch_batches(dataset.lengths[rows], batch_tokens, (0, 0))
    for positions, (batch, hidden_ND) in zip(plan, run_all(run, plan), strict=True):
        are_right: list[Tensor] = []
        for chunk in each_seen(hidden_ND, student.lm_head.weight, batch.targets):
            hits_N = chunk.best_N == chunk.targets.topk_ids_NK[:, 0]
            are_words_N = chunk.targets.is_words_only
            per_token = (*_compared(chunk.seen, chunk.targets), hits_N, are_words_N)
            sums += torch.stack([values_N.double().sum() for values_N in per_token])
            is_right_N = chunk.best_N == chunk.targets.completion_ids_N
            confidence_N = chunk.confidence_N.double().nan_to_num()  # of weights that are none
            bins += _binned(confidence_N, is_right_N.double())
            are_right.append(is_right_N)
        ends = dataset.completion_ids.lengths[rows[positions]].cumsum().tolist()
        are_right_N = torch.cat(are_right)
        num_exact += sum(part_T.all() for part_T in torch.tensor_split(are_right_N, ends[:-1]))
    tokens = int(dataset.completion_ids.lengths[rows].sum())
    return _quality(sums, bins, int(num_exact) / len(rows), len(rows), tokens)


def _quality(sums: Tensor, bins: Tensor, exact_match: float, rows: int, tokens: int) -> Quality:
    """Means of what was summed."""
    kl, cross_entropy, overlap, teachers, students, agreement = (sums[:-1] / tokens).tolist()
    confidence_B, right_B = bins
    is_compared = int(sums[-1]) < tokens
    return Quality(
        kl_to_teacher_nats=kl if is_compared else None,
        top1_agreement=agreement if is_compared else None,
        exact_match=exact_match,
        metric=exact_match,
        metric_rows=rows,
        cross_entropy=cross_entropy,
        mass_overlap=overlap if is_compared else None,
        entropy_ratio=students / teachers if teachers else None,
        ece=float((confidence_B - right_B).abs().sum()) / tokens,
        rows=rows,
        tokens=tokens,
    )


def _compared(seen: Seen, targets: Targets) -> tuple[Tensor, ...]:
    """Per token: KL, cross-entropy, overlap, the teacher's entropy, the student's."""
    teacher_NC, student_NC = (side.exp() for side in classes(seen, targets))
    return (
        forward_kl(seen, targets),
        behaviour_cloning(seen, targets),
        torch.minimum(teacher_NC, student_NC).sum(dim=-1),
        torch.special.entr(teacher_NC).sum(dim=-1),
        torch.special.entr(student_NC).sum(dim=-1),
    )


def _binned(confidence_N: Tensor, is_right_N: Tensor) -> Tensor:
    """Per bin of confidence: the sum of its tokens' confidence, and how many were right."""
    bin_N = (confidence_N * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    sums = (torch.bincount(bin_N, values_N, NUM_BINS) for values_N in (confidence_N, is_right_N))
    return torch.stack(list(sums))
