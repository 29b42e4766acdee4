"""Weights of the linear layers to fewer bits, calibrated on rows of the log.

Shape suffixes: B examples, T tokens, N real tokens of a batch, I input channels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.blocks import Passage, places
from quant.calibration import Tokens
from quant.errors import CompressionError
from quant.formats import Format
from quant.gptq import round_with_compensation
from quant.linear import RoundedLinear
from quant.packed import Layer
from quant.paged import Keep, in_memory, keep_rounded
from trainer.grid import GROUP_SIZES, Rounded, largest_group, round_inputs, round_to_nearest

HESSIAN_BYTES = 2**27  # held at once; more layers than fit are done in turns
EXPERT_DIM = 3  # experts of one layer share a tensor

Linears = dict[str, nn.Linear]
Formats = Mapping[str, Format]  # by the name of a layer
TokenBatch = tuple[Tensor, Tensor]  # token ids and where they are real, both (B, T)


def linear_layers(model: PreTrainedModel) -> Linears:
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


def output_head(model: PreTrainedModel) -> Linears:
    """Return the output head by its name, or nothing where it is the input embeddings too."""
    head = model.get_output_embeddings()
    if head is None or head.weight is model.get_input_embeddings().weight:
        return {}
    return {name: m for name, m in model.named_modules() if m is head}


def group_size(layers: Linears, wished: int | None = None) -> int:
    """Return how many input channels of every layer may share a step of 4 bits.

    Args:
        layers: Of ``linear_layers``.
        wished: Take this one; None takes the largest of ``GROUP_SIZES`` that divides all.

    Raises:
        CompressionError: If the wish, or all of them, does not divide the inputs of a layer.
    """
    size = wished or largest_group(layer.in_features for layer in layers.values())
    tried = size or GROUP_SIZES[-1]
    odd = next((name for name, layer in layers.items() if layer.in_features % tried), None)
    if odd is None:
        return tried
    advice = "leave `group_size` out of [quant], or " if wished else ""
    raise CompressionError(
        f"{odd} has {layers[odd].in_features} input channels, which groups of {tried} do not "
        f"divide: {advice}use --scheme int8, which needs no groups"
    )


@torch.inference_mode()
def round_layers(
    model: PreTrainedModel, layers: Linears, formats: Formats, keep: Keep = in_memory
) -> dict[str, Layer]:
    """Replace linear layers by rounded ones, in place, every weight rounded alone."""
    done = {}
    for name, each in formats.items():
        stored_OI = layers[name].weight.to(model.config.dtype)
        rounded = keep_rounded(round_to_nearest(stored_OI, each.grid), keep)
        done[name] = put(model, name, each, rounded)
    return done


@torch.inference_mode()
def compensate_layers(
    model: PreTrainedModel,
    layers: Linears,
    formats: Formats,
    batches: Iterable[TokenBatch],
    on_layer: Callable[[], None],
    keep: Keep = in_memory,
) -> dict[str, Layer]:
    """Replace linear layers by rounded ones, in place, by what they do to real inputs.

    Layers are taken in turns that fit into memory; a later turn sees the earlier ones rounded,
    so its inputs are those it will have in service. For each turn the batches go on from the
    block in which the last one began.

    Args:
        model: In the dtype that its config names, which the scales get, or wider.
        layers: Of ``linear_layers``.
        formats: Of the layers to replace, in the order of the model.
        batches: Of ``batches_of``.
        on_layer: Called after each finished layer.
        keep: Where rounded weights and states of the model are kept.

    Raises:
        CompressionError: If a layer's inputs are not finite, or it is in no block.
    """
    passage = token_passage(model, list(batches), keep)
    wanted = {name: layers[name] for name in formats}
    place_of = places(model, wanted)
    done: dict[str, Layer] = {}
    for turn in _turns(wanted):
        passage.advance(min(place_of[name] for name in turn))
        hessians = _observe(passage, place_of, turn, formats)
        for name in turn:
            hessian_II = hessians.pop(name)
            if not hessian_II.isfinite().all():
                raise CompressionError(
                    f"inputs of {name} are not finite on the log's rows; the model is broken"
                )
            stored_OI = turn[name].weight.to(model.config.dtype)
            rounded = round_with_compensation(stored_OI, hessian_II, formats[name].grid)
            done[name] = put(model, name, formats[name], keep_rounded(rounded, keep))
            on_layer()
    return done


def put(model: PreTrainedModel, name: str, each: Format, weight: Rounded) -> Layer:
    """Let a model compute one of its layers with these weights.

    The output head stays an ordinary layer, of the weights that are meant.
    """
    layer = model.get_submodule(name)
    is_head = layer is model.get_output_embeddings()
    if is_head:
        head = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        head.weight = nn.Parameter(weight.dense().to(layer.weight.dtype), requires_grad=False)
        model.set_submodule(name, head)
    else:
        rounded = RoundedLinear(weight, layer.bias, rounds_inputs=each.rounds_inputs)
        model.set_submodule(name, rounded)
    return Layer(each, weight, is_head)


def token_passage(
    model: PreTrainedModel, batches: list[TokenBatch], keep: Keep
) -> Passage[TokenBatch, Tensor]:
    """Bring batches before the first block; their results are inputs of the head, ``(B, T, D)``.

    Right padding needs no mask: under causal attention nothing real sees it.
    """

    def run(batch: TokenBatch) -> Tensor:
        hidden_BTD: Tensor = model.model(batch[0], use_cache=False).last_hidden_state
        return hidden_BTD

    return Passage.start(model, run, batches, keep)


def batches_of(sequences: Iterable[Tokens], batch_tokens: int) -> Iterator[TokenBatch]:
    """Token ids and where they are real, padded to the longest of each batch.

    Args:
        sequences: Token ids to run the model on, shortest first.
        batch_tokens: Padded tokens per forward pass.
    """
    group: list[Tensor] = []
    for sequence in map(torch.from_numpy, sequences):
        if group and len(sequence) * (len(group) + 1) > batch_tokens:
            yield _pad(group)
            group = []
        group.append(sequence)
    if group:
        yield _pad(group)


def _observe(
    passage: Passage[TokenBatch, Tensor],
    place_of: Mapping[str, int],
    layers: Linears,
    formats: Formats,
) -> dict[str, Tensor]:
    """Sum ``x x^T`` over the inputs of each layer, as its kernel will see them."""
    hessians = {
        name: torch.zeros(layer.in_features, layer.in_features) for name, layer in layers.items()
    }

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
            is_real = passage.batch[1].flatten()  # some models give all tokens as one row
            inputs_NI = inputs[0].flatten(0, -2)[is_real].float()
            if formats[name].rounds_inputs:
                inputs_NI = round_inputs(inputs_NI)
            hessians[name].addmm_(inputs_NI.T, inputs_NI)

        return add

    end = len(passage.blocks)
    until = min(end, max(place_of[name] for name in layers) + 1)
    heads = [name for name in layers if place_of[name] == end]
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for number, hidden in enumerate(passage.look(until)):
            for name in heads:  # takes what a run gives
                watch(name)(layers[name], (passage.finish(number, hidden),))
    finally:
        for hook in hooks:
            hook.remove()
    return hessians


def _turns(layers: Linears) -> Iterator[Linears]:
    turn: Linears = {}
    held = 0
    for name, layer in layers.items():
        needed = 4 * layer.in_features**2
        if turn and held + needed > HESSIAN_BYTES:
            yield turn
            turn, held = {}, 0
        turn[name] = layer
        held += needed
    if turn:
        yield turn


def _pad(group: list[Tensor]) -> TokenBatch:
    lengths_B1 = torch.tensor([[len(sequence)] for sequence in group])
    token_ids_BT = nn.utils.rnn.pad_sequence(group, batch_first=True)
    return token_ids_BT, torch.arange(token_ids_BT.shape[1]) < lengths_B1
