"""Where models run, and in which dtype.

bfloat16 where the machine computes in it; elsewhere float32, which is a hundred times faster.
"""

import torch
from transformers import PreTrainedModel

from capture.errors import ConfigError

NATIVE = ("avx512_bf16", "amx_bf16", "bf16")  # what x86 and Arm call it


def open_device(name: str) -> torch.device:
    """The device that a configuration names.

    Raises:
        ConfigError: If it is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("[trainer] device is 'cuda', but torch finds none; use 'cpu'")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are computed as such; CPUs without it emulate them."""
    capabilities = torch.cpu.get_capabilities()
    return device.type != "cpu" or any(capabilities.get(name) for name in NATIVE)


def fast_products(device: torch.device) -> torch.autocast:
    """A context in which matrix products of float32 weights are computed in the faster dtype."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def round_weights(model: PreTrainedModel) -> None:
    """Round weights to bfloat16 and leave them as wide as they are, and all else alone.

    ``model.to(bfloat16)`` would round the rotary embedding's frequencies too, which are not saved.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def is_emulated(model: PreTrainedModel) -> bool:
    """Whether a model is in bfloat16 on a machine that does not compute in it."""
    return model.dtype is torch.bfloat16 and not has_bfloat16(model.device)


def in_fast_dtype(model: PreTrainedModel) -> PreTrainedModel:
    """Widen a model stored in bfloat16 to float32, its weights the same, if that is faster."""
    return model.float() if is_emulated(model) else model
