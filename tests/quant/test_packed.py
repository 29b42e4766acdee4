import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from quant.compressor import linear_layers, output_head, round_layers
from quant.errors import CompressionError
from quant.formats import int4
from quant.packed import write_packed
from quant.paged import in_memory
from tests.support.tiny_model import make_tiny_model


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file of this process becomes larger: a disk that is full, as a writer sees it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    source, folder = make_tiny_model(tmp_path / "model"), tmp_path / "bundle"
    folder.mkdir()

    with (
        room_for(100_000),
        pytest.raises(CompressionError, match=r"model\.safetensors: cannot be .* make room"),
    ):
        write_packed(source, folder, {}, [], {}, in_memory)


class ParallelLMHead(nn.Module):
    """Has the name of vLLM's output head, which vLLM does not take for a linear layer."""


class RowParallelLinear(nn.Module):
    """Likewise of its linear layers."""


# compressed-tensors compiles a function when imported, and torch's compiler warns of itself.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_vllm_finds_the_one_format_of_a_rounded_head_too(tmp_path: Path) -> None:
    from vllm.model_executor.layers.quantization.compressed_tensors.utils import (  # noqa: PLC0415
        find_matched_target,
    )

    source, folder = make_tiny_model(tmp_path / "model", tied=False), tmp_path / "bundle"
    folder.mkdir()
    model = AutoModelForCausalLM.from_pretrained(source)
    layers = linear_layers(model) | output_head(model)
    rounded = round_layers(model, layers, dict.fromkeys(layers, int4(32)))

    write_packed(source, folder, rounded, [], {}, in_memory)

    described = json.loads((folder / "config.json").read_text())["quantization_config"]
    targets = described["config_groups"]["group_0"]["targets"]
    down = "model.layers.1.mlp.down_proj"
    for name, module in (("lm_head", ParallelLMHead()), (down, RowParallelLinear())):
        assert find_matched_target(name, module, targets, {}) in targets


def test_other_weights_beside_those_of_the_model_stay_behind(tmp_path: Path) -> None:
    source, folder = make_tiny_model(tmp_path / "model"), tmp_path / "bundle"
    folder.mkdir()
    stray = source / "consolidated.safetensors"
    save_file({"output.weight": torch.zeros(4, 4)}, stray)
    (source / "model.gguf").touch()

    write_packed(source, folder, {}, [], {}, in_memory)

    files, expected = (sorted(path.name for path in each.iterdir()) for each in (folder, source))
    assert files == [name for name in expected if name not in (stray.name, "model.gguf")]
    assert load_file(folder / "model.safetensors").keys() == (
        load_file(source / "model.safetensors").keys()
    )
