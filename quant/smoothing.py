"""Large inputs made smaller before they are rounded, by making their weights larger.

A few channels of a layer's inputs are often many times larger than the rest and take the steps
of 8 bits for themselves. Where a normalisation feeds linear layers and nothing else, a channel
can be divided in the one and multiplied in the other. By powers of two, so that no bit is lost:
the model computes the very same.

Shape suffixes: B examples, T tokens, N real tokens of a batch, I input channels.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.blocks import Passage
from quant.compressor import Formats, Linears, TokenBatch, token_passage
from quant.paged import Keep, in_memory

STRENGTH = 0.5  # of the inputs' difficulty, how much the weights take
LATEST = 4  # outputs that are remembered; between a layer's three there may be norms of their own
SMALLEST = 1e-5  # input or weight, to divide by


@torch.inference_mode()
def smooth(
    model: PreTrainedModel,
    layers: Linears,
    formats: Formats,
    batches: Iterable[TokenBatch],
    keep: Keep = in_memory,
) -> dict[str, Tensor]:
    """Move the size of input channels into weights, in place, where it can be done exactly.

    That is where one normalisation's output goes to layers that all round their inputs. Where a
    block does not compute the same afterwards it is put back as it was.

    Args:
        model: In the dtype that its config names, or wider.
        layers: Of ``linear_layers``.
        formats: Of the layers to be rounded.
        batches: Of ``batches_of``.
        keep: Where changed weights and states of the model are kept.

    Returns:
        The normalisations' changed tensors, by the names that the model has for them.

    Source:
        Xiao et al. 2023, SmoothQuant, arXiv:2211.10438.
    """
    changed: dict[str, Tensor] = {}
    if not any(each.rounds_inputs for each in formats.values()):
        return changed
    passage = token_passage(model, list(batches), keep)
    for place in range(len(passage.blocks)):
        probe = passage.hidden[0].clone()
        seen = _observe(model, layers, passage)
        for name, fed in seen.feeding.items():
            if not all(each in formats and formats[each].rounds_inputs for each in fed):
                continue
            norm = model.get_submodule(name)
            touched = [norm, *(layers[each] for each in fed)]
            before = passage.through(place, 0, probe)
            kept = [dict(module.named_parameters()) for module in touched]
            _divide(norm, [layers[each] for each in fed], seen.largest[fed[0]], keep)
            if torch.equal(passage.through(place, 0, probe), before):
                changed |= {f"{name}.{each}": t.detach() for each, t in norm.named_parameters()}
                continue
            for module, parameters in zip(touched, kept, strict=True):
                _give(module, parameters)
    return changed


@dataclass(slots=True)
class _Seen:
    """What hooks see: which normalisation feeds which layers, and the largest inputs of these."""

    passage: Passage[TokenBatch, Tensor]
    largest: dict[str, Tensor]
    feeding: dict[str, list[str]] = field(default_factory=dict)
    latest: deque[tuple[str, Tensor]] = field(default_factory=lambda: deque(maxlen=LATEST))

    def made(self, name: str, _norm: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        """A normalisation has given something."""
        self.latest.append((name, output))

    def took(self, name: str, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """A layer is about to take something."""
        for owner, output in self.latest:
            if output is inputs[0] and name not in self.feeding.setdefault(owner, []):
                self.feeding[owner].append(name)
        is_real = self.passage.batch[1].flatten()
        inputs_NI = inputs[0].flatten(0, -2)[is_real].float().abs()
        self.largest[name] = torch.maximum(self.largest[name], inputs_NI.amax(dim=0))


def _observe(
    model: PreTrainedModel, layers: Linears, passage: Passage[TokenBatch, Tensor]
) -> _Seen:
    """Bring real inputs through the next block."""
    inside = set(passage.blocks[passage.place].modules())
    seen = _Seen(passage, {n: torch.zeros(layer.in_features) for n, layer in layers.items()})
    hooks = []
    for name, module in model.named_modules():
        if module in inside and "norm" in type(module).__name__.lower():
            hooks.append(module.register_forward_hook(partial(seen.made, name)))
        elif module in inside and name in layers:
            hooks.append(module.register_forward_pre_hook(partial(seen.took, name)))
    try:
        passage.advance(passage.place + 1)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _divide(norm: nn.Module, fed: list[nn.Linear], largest_I: Tensor, keep: Keep) -> None:
    """Divide a normalisation's outputs and multiply what they meet by the same."""
    weights_I = torch.stack([layer.weight.float().abs().amax(dim=0) for layer in fed]).amax(dim=0)
    largest_I, weights_I = largest_I.clamp(min=SMALLEST), weights_I.clamp(min=SMALLEST)
    wished_I = STRENGTH * largest_I.log2() - (1 - STRENGTH) * weights_I.log2()
    factor_I = (wished_I - wished_I.mean()).round().exp2()
    _give(
        norm, {n: tensor_I / factor_I.to(tensor_I.dtype) for n, tensor_I in norm.named_parameters()}
    )
    for layer in fed:
        _give(layer, {"weight": keep(layer.weight * factor_I.to(layer.weight.dtype))})


def _give(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters; what they were may be a file's and must not be written to."""
    for name, tensor in tensors.items():
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
