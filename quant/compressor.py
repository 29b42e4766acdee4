"""Weights of every linear layer to INT8, calibrated on rows of the log.

Shape suffixes: B examples, T tokens, N real tokens of a batch, I input channels.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.calibration import Tokens
from quant.errors import CompressionError
from quant.gptq import LIMIT, Int8Weight, round_with_compensation
from quant.linear import Int8Linear, round_activations

HESSIAN_BYTES = 2**30  # held at once; more layers than fit are done in turns
EXPERT_DIM = 3  # experts of one layer share a tensor

Layers = dict[str, nn.Linear]


def linear_layers(model: PreTrainedModel) -> Layers:
    """Return the layers to quantize, in the order of the model; not its output head.

    Raises:
        CompressionError: If the model has none, has experts, or is quantized already.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise CompressionError("the model is quantized already; give the checkpoint it came from")
    if any(parameter.dim() == EXPERT_DIM for parameter in model.parameters()):
        raise CompressionError("the model has mixture-of-experts weights; expected a dense model")
    head = model.get_output_embeddings()
    named = model.named_modules()
    layers = {n: m for n, m in named if isinstance(m, nn.Linear) and m is not head}
    if not layers:
        raise CompressionError("the model has no linear layer to quantize")
    return layers


@torch.inference_mode()
def quantize_layers(
    model: PreTrainedModel,
    layers: Layers,
    sequences: Iterable[Tokens],
    batch_tokens: int,
    on_layer: Callable[[], None],
    limit: int = LIMIT,
) -> dict[str, Int8Weight]:
    """Replace linear layers by INT8 ones, in place.

    Layers are taken in turns that fit into memory; a later turn sees the earlier ones quantized,
    so its inputs are those it will have in service.

    Args:
        model: In the dtype that its config names, which the scales get, or wider.
        layers: Of ``linear_layers``.
        sequences: Token ids to run the model on, shortest first.
        batch_tokens: Padded tokens per forward pass.
        on_layer: Called after each finished layer.
        limit: Largest weight either way, of ``LIMIT``.

    Raises:
        CompressionError: If a layer's inputs are not finite.
    """
    batches = list(_batches(sequences, batch_tokens))
    done: dict[str, Int8Weight] = {}
    for turn in _turns(layers):
        for name, hessian_II in _observe(model, turn, batches).items():
            if not hessian_II.isfinite().all():
                raise CompressionError(
                    f"inputs of {name} are not finite on the log's rows; the model is broken"
                )
            layer = turn[name]
            stored_OI = layer.weight.to(model.config.dtype)
            done[name] = round_with_compensation(stored_OI, hessian_II, limit)
            model.set_submodule(name, Int8Linear(done[name], layer.bias))
            on_layer()
    return done


def _observe(
    model: PreTrainedModel, layers: Layers, batches: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Sum ``x x^T`` over the 8-bit inputs of each layer."""
    hessians = {
        name: torch.zeros(layer.in_features, layer.in_features) for name, layer in layers.items()
    }
    is_real_BT = torch.empty(0)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
            inputs_NI = round_activations(inputs[0][is_real_BT].float())
            hessians[name].addmm_(inputs_NI.T, inputs_NI)

        return add

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for token_ids_BT, is_real_BT in batches:  # noqa: B007 - the hooks read it
            # Right padding needs no mask: under causal attention nothing real sees it.
            model(token_ids_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return hessians


def _turns(layers: Layers) -> Iterator[Layers]:
    turn: Layers = {}
    held = 0
    for name, layer in layers.items():
        needed = 4 * layer.in_features**2
        if turn and held + needed > HESSIAN_BYTES:
            yield turn
            turn, held = {}, 0
        turn[name] = layer
        held += needed
    yield turn


def _batches(sequences: Iterable[Tokens], batch_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and where they are real, padded to the longest of each batch."""
    group: list[Tensor] = []
    for sequence in map(torch.from_numpy, sequences):
        if group and len(sequence) * (len(group) + 1) > batch_tokens:
            yield _pad(group)
            group = []
        group.append(sequence)
    if group:
        yield _pad(group)


def _pad(group: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths_B1 = torch.tensor([[len(sequence)] for sequence in group])
    token_ids_BT = nn.utils.rnn.pad_sequence(group, batch_first=True)
    return token_ids_BT, torch.arange(token_ids_BT.shape[1]) < lengths_B1
