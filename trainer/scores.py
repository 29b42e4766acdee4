"""Models whose scores are their last states times one matrix, which everything here relies on.

The projection runs on some positions only, a few at a time, and together with the loss; so it is
computed here, from the model's weights, and not by the model.

Shape suffixes: T tokens, D width, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.errors import ModelError

NUM_TOKENS = 4
SPREAD = 30.0  # of the scores that are tried; what caps large ones shows
ROUNDING = 2.0  # times the dtype's epsilon, of the scores' norm
ACCUMULATION = 1e-3  # least of it: float32 sums differ by their order

_Hook = Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]


def check_scores(model: PreTrainedModel) -> None:
    """See on a few tokens that a model's logits are ``model.model(...)[0] @ lm_head.weight.T``.

    The model's own states are tried, and random ones that give large scores.

    Raises:
        ModelError: If they are not, or the model is built otherwise.
    """
    was_training = model.training
    model.eval()
    try:
        problem = _problem(model)
    except AttributeError as error:  # of the model, or of what it gives
        raise _refusal(model, str(error)) from error
    finally:
        model.train(was_training)
    if problem is not None:
        raise _refusal(model, problem)


@torch.no_grad()  # not inference_mode: what a model remembers of this run is trained with later
def _problem(model: PreTrainedModel) -> str | None:
    base, head = model.model, model.lm_head
    if head.bias is not None:
        return "lm_head has a bias"
    token_ids_1T = torch.arange(NUM_TOKENS, device=model.device)[None]
    given: list[Tensor] = []
    hook = head.register_forward_pre_hook(_large(head.weight, given))
    try:
        logits_1TV = model(token_ids_1T, use_cache=False).logits
    finally:
        hook.remove()
    if not given:
        return "lm_head is not called"
    own_1TD = base(token_ids_1T, use_cache=False).last_hidden_state
    own, large_1TD = given
    if own.shape != own_1TD.shape or _differ(own, own_1TD):
        return "lm_head is given something else than `model.model` gives"
    if _differ(logits_1TV, large_1TD @ head.weight.T):
        return "they are scaled, capped or shifted behind lm_head"
    return None


def _large(weight_VD: Tensor, given: list[Tensor]) -> _Hook:
    """Notes what the projection is given, and gives it random states of large scores instead."""

    def replace(_head: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (own_1TD,) = inputs
        generator = torch.Generator().manual_seed(0)  # the run's own is left alone
        random_1TD = torch.randn(own_1TD.shape, generator=generator).to(own_1TD)
        scores_1TV = (random_1TD @ weight_VD.T).float()
        large_1TD = random_1TD * (SPREAD / scores_1TV.std()).to(own_1TD.dtype)
        given.extend([own_1TD, large_1TD])
        return (large_1TD,)

    return replace


def _differ(found: Tensor, expected: Tensor) -> bool:
    """Whether by more than rounding; what is no number is for others to find."""
    if found.shape != expected.shape:
        return True
    allowed = max(ROUNDING * torch.finfo(expected.dtype).eps, ACCUMULATION)
    found, expected = found.float(), expected.float()
    return bool((found - expected).norm() > allowed * expected.norm())


def _refusal(model: PreTrainedModel, problem: str) -> ModelError:
    return ModelError(
        f"a model of type {model.config.model_type} cannot be used: its scores have to be what "
        f"`model.model` gives times lm_head.weight, and nothing else ({problem}); such are Llama, "
        "Mistral, Qwen2, Qwen3, Gemma 1 and 3, Phi-3, OLMo 2 and their like"
    )
