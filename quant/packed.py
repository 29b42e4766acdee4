"""A model folder with INT8 weights, in the format that vLLM reads: compressed-tensors.

What is not a quantized weight is copied: embeddings, output head, norms and biases tensor by
tensor, tokenizer, chat template and generation config byte by byte.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from quant.errors import CompressionError
from quant.gptq import Int8Weight
from trainer.folder import list_files
from trainer.manifest import MANIFEST

INDEX = "model.safetensors.index.json"
WRITTEN_HERE = (INDEX, MANIFEST, "config.json")


def write_packed(
    source: Path, folder: Path, weights: dict[str, Int8Weight], ignored: Sequence[str]
) -> None:
    """Copy a model folder, its linear layers replaced.

    Args:
        source: Folder of the unquantized model.
        folder: Empty folder to fill.
        weights: Quantized weights by the name of their layer.
        ignored: Linear layers left as they are.

    Raises:
        CompressionError: If the folder does not store a layer under the name the model gives it.
        ManifestError: If the source holds code or pickles.
    """
    names = list_files(source)
    shards = [name for name in names if name.endswith(".safetensors")]
    for name in set(names) - {*shards, *WRITTEN_HERE}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    _write_config(source, folder, ignored)
    remaining = dict(weights)
    stored: dict[str, str] = {}
    size_bytes = 0
    for shard in shards:
        tensors = _pack_shard(source / shard, remaining)
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / shard)  # safetensors writes 0600
        stored |= dict.fromkeys(tensors, shard)
        size_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if remaining:
        raise CompressionError(
            f"{source}: no tensor {next(iter(remaining))}.weight in its safetensors files; expected"
            " weights stored under the names the model has in transformers"
        )
    if len(shards) > 1:
        index = {"metadata": {"total_size": size_bytes}, "weight_map": stored}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _pack_shard(path: Path, weights: dict[str, Int8Weight]) -> dict[str, Tensor]:
    """Tensors of one file; takes the weights it uses out of ``weights``."""
    tensors: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            layer, _, kind = name.rpartition(".")
            packed = weights.pop(layer, None) if kind == "weight" else None
            if packed is None:
                tensors[name] = file.get_tensor(name)
            else:
                tensors[name] = packed.values_OI
                tensors[f"{layer}.weight_scale"] = packed.scale_O1
    return tensors


def _write_config(source: Path, folder: Path, ignored: Sequence[str]) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _quantization_config(ignored)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _quantization_config(ignored: Sequence[str]) -> dict[str, JsonValue]:
    """Weights with one scale per output channel, inputs with one per token, found as they come."""
    int8: dict[str, JsonValue] = {"num_bits": 8, "type": "int", "symmetric": True}
    group: dict[str, JsonValue] = {
        "targets": ["Linear"],
        "format": "int-quantized",
        "weights": {**int8, "strategy": "channel", "dynamic": False},
        "input_activations": {**int8, "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(ignored),
    }
