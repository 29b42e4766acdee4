"""Large inputs made smaller before they are rounded, by making their weights larger.

A few channels of a layer's inputs are often many times larger than the rest and take the steps
of 8 bits for themselves. Where a normalisation feeds linear layers and nothing else, a channel
can be divided in the one and multiplied in the other. By powers of two, so that no bit is lost:
the model computes the very same.

Shape suffixes: B examples, T tokens, N real tokens of a batch, I input channels.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.compressor import Formats, Linears

STRENGTH = 0.5  # of the inputs' difficulty, how much the weights take
LATEST = 4  # outputs that are remembered; between a layer's three there may be norms of their own
SMALLEST = 1e-5  # input or weight, to divide by


@torch.inference_mode()
def smooth(
    model: PreTrainedModel,
    layers: Linears,
    formats: Formats,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> dict[str, Tensor]:
    """Move the size of input channels into weights, in place, where it can be done exactly.

    That is where one normalisation's output goes to layers that all round their inputs. What
    does not compute the same afterwards is put back as it was.

    Args:
        model: In the dtype that its config names, or wider.
        layers: Of ``linear_layers``.
        formats: Of the layers to be rounded.
        batches: Of ``batches_of``.

    Returns:
        The normalisations' changed tensors, by the names that the model has for them.

    Source:
        Xiao et al. 2023, SmoothQuant, arXiv:2211.10438.
    """
    batches = list(batches)
    flow = _observe(model, layers, batches)
    probe_BT = batches[0][0][:1]
    changed: dict[str, Tensor] = {}
    for name, fed in flow.feeding.items():
        if not all(each in formats and formats[each].rounds_inputs for each in fed):
            continue
        norm = model.get_submodule(name)
        touched = [*norm.parameters(), *(layers[each].weight for each in fed)]
        before, kept = _predicted(model, probe_BT), [tensor.clone() for tensor in touched]
        _divide(norm, [layers[each] for each in fed], flow.largest[fed[0]])
        if not torch.equal(_predicted(model, probe_BT), before):
            for tensor, old in zip(touched, kept, strict=True):
                tensor.copy_(old)
        else:
            changed |= {f"{name}.{each}": t.detach() for each, t in norm.named_parameters()}
    return changed


@dataclass(slots=True)
class _Flow:
    """What hooks see: which normalisation feeds which layers, and the largest inputs of these."""

    largest: dict[str, Tensor]
    feeding: dict[str, list[str]] = field(default_factory=dict)
    latest: deque[tuple[str, Tensor]] = field(default_factory=lambda: deque(maxlen=LATEST))
    is_real_BT: Tensor = field(default_factory=lambda: torch.empty(0))

    def made(self, name: str, _norm: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        """A normalisation has given something."""
        self.latest.append((name, output))

    def took(self, name: str, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """A layer is about to take something."""
        for owner, output in self.latest:
            if output is inputs[0] and name not in self.feeding.setdefault(owner, []):
                self.feeding[owner].append(name)
        inputs_NI = inputs[0][self.is_real_BT].float().abs()
        self.largest[name] = torch.maximum(self.largest[name], inputs_NI.amax(dim=0))


def _observe(
    model: PreTrainedModel, layers: Linears, batches: list[tuple[Tensor, Tensor]]
) -> _Flow:
    """Run a model on real inputs."""
    flow = _Flow({name: torch.zeros(layer.in_features) for name, layer in layers.items()})
    norms = {n: m for n, m in model.named_modules() if "norm" in type(m).__name__.lower()}
    hooks = [m.register_forward_hook(partial(flow.made, name)) for name, m in norms.items()]
    hooks += [m.register_forward_pre_hook(partial(flow.took, name)) for name, m in layers.items()]
    try:
        for token_ids_BT, flow.is_real_BT in batches:
            model(token_ids_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return flow


def _divide(norm: nn.Module, fed: list[nn.Linear], largest_I: Tensor) -> None:
    """Divide a normalisation's outputs and multiply what they meet by the same."""
    weights_I = torch.stack([layer.weight.float().abs().amax(dim=0) for layer in fed]).amax(dim=0)
    largest_I, weights_I = largest_I.clamp(min=SMALLEST), weights_I.clamp(min=SMALLEST)
    wished_I = STRENGTH * largest_I.log2() - (1 - STRENGTH) * weights_I.log2()
    factor_I = (wished_I - wished_I.mean()).round().exp2()
    for parameter_I in norm.parameters():
        parameter_I.div_(factor_I)
    for layer in fed:
        layer.weight.mul_(factor_I)


def _predicted(model: PreTrainedModel, token_ids_BT: Tensor) -> Tensor:
    logits: Tensor = model(token_ids_BT, use_cache=False).logits
    return logits
