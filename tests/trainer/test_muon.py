import pytest
import torch
from torch import Tensor

from trainer.support_desk.muon import Muon, orthogonalized


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24), (1, 32, 32)])
def test_singular_values_end_up_near_one_and_their_vectors_stay(shape: tuple[int, ...]) -> None:
    matrix_NOI = random(*shape).double()
    left, values, right = torch.linalg.svd(matrix_NOI, full_matrices=False)
    is_large = values > 0.01 * values.amax()

    changed = left.mT @ orthogonalized(matrix_NOI) @ right.mT

    after = changed.diagonal(dim1=-2, dim2=-1)
    assert torch.all((after > 0.6) & (after < 1.3) | ~is_large)
    assert (changed - torch.diag_embed(after)).abs().max() < 1e-6


def test_it_steps_like_the_one_of_pytorch() -> None:
    """Which rounds to bfloat16 inside."""
    mine, theirs = (
        [torch.nn.Parameter(random(24, 40)), torch.nn.Parameter(random(40, 24, seed=1))]
        for _ in range(2)
    )
    muon = Muon(mine, 0.01, momentum=0.9, decay=0.1)
    reference = torch.optim.Muon(
        theirs, lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(4):
        for one, other in zip(mine, theirs, strict=True):
            one.grad = random(*one.shape, seed=10 + step)
            other.grad = one.grad.clone()
        muon.step()
        reference.step()  # type: ignore[no-untyped-call]

    for start, one, other in zip((0, 1), mine, theirs, strict=True):
        moved = (one - random(*one.shape, seed=start)).norm()
        assert (one - other).norm() < 0.01 * moved
