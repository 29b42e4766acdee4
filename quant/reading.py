"""A folder of packed 4-bit weights as a model that computes with them, most of it on the disk."""

from pathlib import Path

from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from quant.compressor import put
from quant.errors import CompressionError
from quant.formats import int4, unpack
from quant.paged import Keep, widen
from trainer.grid import Rounded

PACKED = ".weight_packed"


def open_packed(folder: Path, keep: Keep) -> PreTrainedModel:
    """Open symmetric 4-bit weights, with one size of groups, as compressed-tensors stores them.

    Args:
        folder: Of such a model.
        keep: Where unpacked weights are kept.

    Raises:
        CompressionError: If a weight of the model is not there under its name.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    (group,) = config.quantization_config["config_groups"].values()
    del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    tensors = _mapped(folder)
    form = int4(group["weights"]["group_size"])
    for owner in [name.removesuffix(PACKED) for name in tensors if name.endswith(PACKED)]:
        words_OW, scale_OG = tensors.pop(owner + PACKED), tensors.pop(f"{owner}.weight_scale")
        channels = int(tensors.pop(f"{owner}.weight_shape")[1])
        values_OI = keep(unpack(words_OW, channels, form.grid))
        put(model, owner, form, Rounded(values_OI, scale_OG))
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise CompressionError(f"{folder}: no tensor {missing[0]} in its safetensors files")
    return widen(model.eval(), keep)


def _mapped(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, read when they are used."""
    tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors
