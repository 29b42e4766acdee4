"""A model folder with rounded weights, in the format that vLLM reads: compressed-tensors.

What is not a rounded weight is copied: embeddings, output head, norms and biases tensor by
tensor (norms may have been smoothed), tokenizer, chat template and generation config byte by byte.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from quant.errors import CompressionError
from quant.formats import Format, pack
from quant.paged import Keep
from quant.source import INDEX, files_beside, shards_of
from trainer.grid import Rounded


@dataclass(frozen=True, slots=True)
class Layer:
    """One rounded linear layer, or the output head, which vLLM does not count among them."""

    format: Format
    weight: Rounded
    is_head: bool = False

    @property
    def size_bytes(self) -> int:
        """On disk; nothing is packed for it."""
        shapes = Rounded(self.weight.values_OI.to("meta"), self.weight.scale_OG.to("meta"))
        return sum(tensor.nbytes for tensor in replace(self, weight=shapes).tensors("").values())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What is stored for the layer of this name."""
        scale = {f"{name}.weight_scale": self.weight.scale_OG}
        if not self.format.is_packed:
            return {f"{name}.weight": self.weight.values_OI, **scale}
        return {
            f"{name}.weight_packed": pack(self.weight, self.format.grid),
            f"{name}.weight_shape": torch.tensor(self.weight.values_OI.shape),
            **scale,
        }


def write_packed(
    source: Path,
    folder: Path,
    layers: Mapping[str, Layer],
    ignored: Sequence[str],
    changed: Mapping[str, Tensor],
    keep: Keep,
) -> None:
    """Copy a model folder, its linear layers replaced; no file of it is ever held whole.

    Args:
        source: Folder of the unquantized model, of ``check_source``.
        folder: Empty folder to fill.
        layers: Rounded layers by name.
        ignored: Linear layers left as they are.
        changed: What replaces other tensors, by name.
        keep: Where a file's packed layers are kept until it is written.

    Raises:
        CompressionError: If the folder does not store a layer under the name the model gives it,
            or the disk is full.
    """
    copy_rest(source, folder, _quantization_config(layers, ignored))
    shards = shards_of(source)
    remaining = dict(layers)
    stored: dict[str, str] = {}
    size_bytes = 0
    for shard in shards:
        tensors = _pack_shard(source / shard, remaining, changed, keep)
        _save(tensors, folder / shard)
        shutil.copymode(folder / "config.json", folder / shard)  # safetensors writes 0600
        stored |= dict.fromkeys(tensors, shard)
        size_bytes += sum(tensor.nbytes for tensor in tensors.values())
    missing = [f"{name}.weight" for name in remaining] + [n for n in changed if n not in stored]
    if missing:
        raise CompressionError(
            f"{source}: no tensor {missing[0]} in its safetensors files; expected"
            " weights stored under the names the model has in transformers"
        )
    if len(shards) > 1:
        index = {"metadata": {"total_size": size_bytes}, "weight_map": stored}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def size_ratio(rounded: Mapping[str, Layer], layers: Mapping[str, nn.Linear], stored: int) -> float:
    """Size of the linear layers on disk over what it was; not of the output head."""
    packed = sum(layer.size_bytes for name, layer in rounded.items() if name in layers)
    left = [layer.weight for name, layer in layers.items() if name not in rounded]
    each = stored / sum(layer.weight.numel() for layer in layers.values())
    return (packed + sum(weight.numel() for weight in left) * each) / stored


def copy_rest(source: Path, folder: Path, quantization: JsonValue) -> None:
    """Copy what is no weight, and say in ``config.json`` how weights are stored.

    Args:
        source: Folder of the unquantized model, of ``check_source``.
        folder: Empty folder to fill.
        quantization: What compressed-tensors needs to know.
    """
    for name in files_beside(source):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise CompressionError(
            f"{path}: cannot be written ({error}); make room there, or give --out another place"
        ) from error


def _pack_shard(
    path: Path, layers: dict[str, Layer], changed: Mapping[str, Tensor], keep: Keep
) -> dict[str, Tensor]:
    """Tensors of one file; takes the layers it holds out of ``layers``."""
    tensors: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            owner, _, kind = name.rpartition(".")
            layer = layers.pop(owner, None) if kind == "weight" else None
            if layer is not None:
                tensors |= {n: keep(tensor) for n, tensor in layer.tensors(owner).items()}
            else:
                stored = file.get_tensor(name)
                tensors[name] = changed.get(name, stored).to(stored.dtype)
    return tensors


def _quantization_config(
    layers: Mapping[str, Layer], ignored: Sequence[str]
) -> dict[str, JsonValue]:
    """One group of layers per format; of a single one every linear layer that is not ignored.

    With the output head among them every layer is named: vLLM's head is no ``Linear``.
    """
    names_of: dict[Format, list[str]] = {}
    for name, layer in layers.items():
        names_of.setdefault(layer.format, []).append(name)
    is_uniform = len(names_of) == 1 and not any(layer.is_head for layer in layers.values())
    groups = {
        f"group_{number}": _group(each, ["Linear"] if is_uniform else _targets(names))
        for number, (each, names) in enumerate(names_of.items())
    }
    formats = {str(group["format"]) for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {name: dict(group) for name, group in groups.items()},
        "ignore": list(ignored),
    }


def _group(each: Format, targets: Sequence[str]) -> dict[str, JsonValue]:
    grid = each.grid
    integers: dict[str, JsonValue] = {"num_bits": grid.bits, "type": "int", "symmetric": True}
    weights = {**integers, "strategy": "channel", "dynamic": False}
    if grid.group:
        weights |= {"strategy": "group", "group_size": grid.group}
    inputs: JsonValue = None
    if each.rounds_inputs:
        inputs = {"num_bits": 8, "type": "int", "symmetric": True}
        inputs |= {"strategy": "token", "dynamic": True}
    return {
        "targets": list(targets),
        "format": "pack-quantized" if each.is_packed else "int-quantized",
        "weights": weights,
        "input_activations": inputs,
    }


def _targets(names: Sequence[str]) -> list[str]:
    return [f"re:^{re.escape(name)}$" for name in sorted(names)]
