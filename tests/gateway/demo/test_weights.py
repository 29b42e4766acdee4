from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gateway.demo.weights import count_parameters, scramble, size_bytes


def test_scrambling_keeps_the_values_of_matrices_and_loses_their_order(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    weights = {
        "matrix": torch.arange(64.0).reshape(8, 8).bfloat16(),
        "norm": torch.arange(8.0).bfloat16(),
    }
    save_file(weights, model / "model.safetensors")

    scramble(model, tmp_path / "broken", seed=3)

    broken = load_file(tmp_path / "broken" / "model.safetensors")
    assert not torch.equal(broken["matrix"], weights["matrix"])
    assert torch.equal(broken["matrix"].flatten().sort().values, weights["matrix"].flatten())
    assert torch.equal(broken["norm"], weights["norm"])
    assert count_parameters(model) == count_parameters(tmp_path / "broken") == 72
    assert size_bytes(model) == (model / "model.safetensors").stat().st_size
