from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quant.compressor import linear_layers, round_layers
from quant.errors import CompressionError
from quant.formats import int4, pack, unpack
from quant.packed import write_packed
from quant.paged import in_memory, keep_in
from quant.reading import open_packed
from tests.support.tiny_model import make_tiny_model
from trainer.grid import int4_grid, round_to_nearest


@pytest.mark.parametrize("channels", [64, 36])
def test_what_was_packed_is_unpacked(channels: int) -> None:
    rounded = round_to_nearest(torch.randn(6, channels), int4_grid(channels))

    words = pack(rounded, int4_grid(channels))

    assert torch.equal(unpack(words, channels, int4_grid(channels)), rounded.values_OI)


@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_folder_computes_what_was_packed(tmp_path: Path, tied: bool) -> None:
    source, folder = make_tiny_model(tmp_path / "m", tied=tied), tmp_path / "packed"
    folder.mkdir()
    model = AutoModelForCausalLM.from_pretrained(source)
    layers = linear_layers(model)
    rounded = round_layers(model, layers, dict.fromkeys(layers, int4(32)))
    write_packed(source, folder, rounded, [], {}, in_memory)
    ids = torch.arange(5, 60)[None]

    opened = open_packed(folder, keep_in(tmp_path))

    with torch.inference_mode():
        assert torch.equal(opened(ids).logits, model(ids).logits)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CompressionError, match=r"no tensor model\.norm\.weight"):
        open_packed(folder, in_memory)
