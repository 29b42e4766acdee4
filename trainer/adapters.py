"""LoRA: a student keeps its weights and learns a small correction of each of its linear layers.

peft takes two seconds to load, so it is where it is needed.

Source:
    Hu et al. 2021, arXiv:2106.09685; the layers are peft's.
"""

import copy

import torch
from transformers import PreTrainedModel

SCALE = 2  # alpha over rank


def add_adapters(student: PreTrainedModel, rank: int, seed: int) -> None:
    """Give every linear layer but the output projection a correction; only those are trained."""
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=SCALE * rank, target_modules="all-linear", lora_dropout=0.0
    )
    inject_adapter_in_model(config, student)


def merged(student: PreTrainedModel) -> PreTrainedModel:
    """A copy whose weights have their corrections in them; the student itself if it has none."""
    if not any(hasattr(module, "lora_A") for module in student.modules()):
        return student
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    copied = copy.deepcopy(student)
    for name, module in list(copied.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, module.get_base_layer())
    return copied.requires_grad_()
