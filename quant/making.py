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
        CompressionError: If the width of a layer does not divide, or the checkpoint was not
            trained for the scheme.
    """
    if scheme.method == "qat":
        return dict.fromkeys(layers, _trained_format(scheme, parent))
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


def _trained_format(scheme: Scheme, parent: Lineage) -> Format:
    """The format that a checkpoint's own training rounded to."""
    wanted = scheme.name.partition("-")[0]
    found = parent.recipe.get(TRAINED_FOR)
    grid = parent.recipe.get(TRAINED_GRID)
    if found != wanted or not isinstance(grid, dict):
        was = f"for {found}" if found else "without fake quantization"
        raise CompressionError(
            f"{scheme.name}: this checkpoint was trained {was}; train it with "
            f'`fake_quantize = "{wanted}"` in [trainer], or use another scheme'
        )
    return Format(wanted, Grid(**grid), rounds_inputs=wanted == "int8")  # type: ignore[arg-type]
