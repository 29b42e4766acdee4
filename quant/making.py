"""A scheme applied to a model: every layer's format, and its weights rounded to it."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from quant.compressor import (
    Linears,
    TokenBatch,
    compensate_layers,
    group_size,
    linear_layers,
    output_head,
    round_layers,
)
from quant.errors import CompressionError
from quant.formats import Format, int4, int8, int8_weight
from quant.packed import Layer
from quant.paged import Keep
from quant.schemes import Scheme
from quant.screen import Screen
from quant.smoothing import smooth
from trainer.grid import Grid
from trainer.manifest import Lineage

TRAINED_FOR = "fake_quantize"  # of a checkpoint's recipe: the format
TRAINED_GRID = "fake_quantize_grid"  # and its grid


def uniform_formats(
    layers: Linears, scheme: Scheme, parent: Lineage, wished_group: int | None, largest: int
) -> dict[str, Format]:
    """Give every layer the scheme's one format.

    Args:
        layers: Of ``linear_layers``.
        scheme: Not one that mixes formats.
        parent: Of the checkpoint; says what it was trained for.
        wished_group: Input channels that share a step of 4 bits.
        largest: Weight of INT8 on the target.

    Raises:
        CompressionError: If the width of a layer does not divide, or as ``trained_format``.
    """
    if scheme.method == "qat":
        return dict.fromkeys(layers, trained_format(scheme, parent, largest))
    if scheme.weight_bits == 4:  # noqa: PLR2004 - bits
        return dict.fromkeys(layers, int4(group_size(layers, wished_group)))
    eight = int8(largest) if scheme.activation_bits == scheme.weight_bits else int8_weight()
    return dict.fromkeys(layers, eight)


def make(
    model: PreTrainedModel,
    scheme: Scheme,
    formats: Mapping[str, Format],
    batches: Sequence[TokenBatch],
    keep: Keep,
    screen: Screen,
) -> tuple[dict[str, Layer], dict[str, Tensor]]:
    """Round a model's layers in place; return them, and other tensors that changed, by name.

    Args:
        model: In the dtype that its config names, or wider.
        scheme: Says how.
        formats: Of the layers to round.
        batches: What to compensate on.
        keep: Where what is made is kept.
        screen: Shows the progress.

    Raises:
        CompressionError: If a layer's inputs are not finite.
    """
    layers = linear_layers(model) | output_head(model)
    ordered = {name: formats[name] for name in layers if name in formats}
    if scheme.method in ("rtn", "qat"):
        return round_layers(model, layers, ordered, keep), {}
    screen.say(f"quantizing on {sum(len(ids) for ids, _ in batches)} examples", len(ordered))
    changed = smooth(model, layers, ordered, batches, keep)
    return compensate_layers(model, layers, ordered, batches, screen.advance, keep), changed


def largest_weight(scheme: Scheme, parent: Lineage, largest: int) -> int:
    """Up to which weight the INT8 of a bundle goes: as trained, or as the target multiplies."""
    if scheme.method == "qat" and scheme.activation_bits == 8:  # noqa: PLR2004 - bits
        return trained_format(scheme, parent, largest).grid.high
    return largest


def trained_format(scheme: Scheme, parent: Lineage, largest: int) -> Format:
    """The format that a checkpoint's own training rounded to.

    Args:
        scheme: One that rounds as it was trained.
        parent: Of the checkpoint.
        largest: Weight of INT8 on the target.

    Raises:
        CompressionError: If it was trained for another format, or for larger weights than the
            target multiplies exactly.
    """
    wanted = scheme.name.partition("-")[0]
    found = parent.recipe.get(TRAINED_FOR)
    grid = parent.recipe.get(TRAINED_GRID)
    if found != wanted or not isinstance(grid, dict):
        was = f"for {found}" if found else "without fake quantization"
        raise CompressionError(
            f"{scheme.name}: this checkpoint was trained {was}; train it with "
            f'`fake_quantize = "{wanted}"` in [trainer], or use another scheme'
        )
    trained = Grid(**grid)  # type: ignore[arg-type]
    if trained.high > largest:
        raise CompressionError(
            f"{scheme.name}: this checkpoint was trained for weights up to {trained.high}, the "
            f"target's products are exact up to {largest} only: train it on such a machine, give "
            "another --target, or use --scheme int8"
        )
    return Format(wanted, trained, rounds_inputs=wanted == "int8")
