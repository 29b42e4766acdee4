from dataclasses import asdict

import pytest
from torch import nn

from quant.errors import CompressionError
from quant.making import largest_weight, uniform_formats
from quant.schemes import find_scheme
from trainer.grid import int8_grid
from trainer.manifest import Lineage

LAYERS = {"up": nn.Linear(32, 8)}
QAT = find_scheme("int8-qat", "avx512")


def trained_up_to(largest: int) -> Lineage:
    grid = asdict(int8_grid(largest))
    return Lineage(recipe={"fake_quantize": "int8", "fake_quantize_grid": grid})


def test_what_was_trained_for_larger_weights_than_the_target_multiplies_is_refused() -> None:
    parent = trained_up_to(127)

    with pytest.raises(CompressionError, match=r"weights up to 127, .* exact up to 64 only: train"):
        uniform_formats(LAYERS, QAT, parent, None, 64)
    assert uniform_formats(LAYERS, QAT, parent, None, 127)["up"].grid == int8_grid(127)


def test_the_largest_weight_is_the_one_trained_for_or_the_targets() -> None:
    assert uniform_formats(LAYERS, QAT, trained_up_to(64), None, 127)["up"].grid == int8_grid(64)
    assert largest_weight(QAT, trained_up_to(64), 127) == 64
    assert largest_weight(find_scheme("int8", "avx512"), trained_up_to(64), 127) == 127
    assert largest_weight(find_scheme("int4-qat", "avx512"), trained_up_to(64), 127) == 127
