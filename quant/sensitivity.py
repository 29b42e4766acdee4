"""What each group of layers loses in each format, all others left as they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from quant.compressor import Linears, put
from quant.formats import Format
from quant.groups import Groups
from quant.knapsack import Option
from quant.reference import Reference
from trainer.grid import round_to_nearest

AS_IT_IS = "16 bits"


@dataclass(frozen=True, slots=True)
class Finding:
    """One group in one format.

    Attributes:
        group: Its name, as the engine calls it.
        format: ``AS_IT_IS``, or the name of a format.
        size_bytes: Of the group's weights on disk.
        kl_nats: KL(before || after) with only this group rounded.
        top1_agreement: Share of tokens whose likeliest token is the same.
    """

    group: str
    format: str
    size_bytes: int
    kl_nats: float
    top1_agreement: float


def count_looks(groups: Groups, formats: Mapping[str, tuple[Format, ...]]) -> int:
    """How often ``measure`` calls ``on_look``."""
    return sum(len(formats[group]) for group in groups)


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    layers: Linears,
    groups: Groups,
    formats: Mapping[str, tuple[Format, ...]],
    reference: Reference,
    on_look: Callable[[], None],
) -> list[Finding]:
    """Round one group at a time, to the nearest, and run the model; it is left as it was.

    One group is held twice, once as it was and once rounded.

    Args:
        model: The model, unquantized.
        layers: Its layers by name.
        groups: Those that the engine computes as one.
        formats: To try, by group.
        reference: The model's predictions.
        on_look: Called after each run of the model.
    """
    found = []
    for group, names in groups.items():
        kept = {name: layers[name] for name in names}
        found.append(Finding(group, AS_IT_IS, _stored_bytes(model, kept), 0.0, 1.0))
        for each in formats[group]:
            size = 0
            for name, layer in kept.items():
                stored_OI = layer.weight.to(model.config.dtype)
                rounded = put(model, name, each, round_to_nearest(stored_OI, each.grid))
                size += rounded.size_bytes
            seen = reference.compare(model)
            found.append(Finding(group, each.name, size, seen.kl_nats, seen.top1_agreement))
            for name, layer in kept.items():
                model.set_submodule(name, layer)
            on_look()
    return found


def options(findings: list[Finding]) -> dict[str, tuple[Option, ...]]:
    """What a knapsack chooses from."""
    grouped: dict[str, list[Option]] = {}
    for each in findings:
        grouped.setdefault(each.group, []).append(
            Option(each.format, each.size_bytes, max(each.kl_nats, 0.0))
        )
    return {group: tuple(choices) for group, choices in grouped.items()}


def _stored_bytes(model: PreTrainedModel, layers: Mapping[str, nn.Linear]) -> int:
    weights = sum(layer.weight.numel() for layer in layers.values())
    return int(weights * model.config.dtype.itemsize)
