from pathlib import Path

import pytest
import torch
from torch import Tensor

from quant import paged
from quant.errors import CompressionError
from quant.paged import keep_in, open_paged
from tests.support.tiny_model import make_tiny_model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_a_kept_tensor_is_the_same_and_its_file_has_no_name(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensor = (torch.randn(30, 7) * 50).to(dtype)

    kept = keep_in(tmp_path)(tensor)

    assert torch.equal(kept, tensor)
    assert kept.dtype is dtype
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_of(tmp_path: Path) -> None:
    endless = torch.zeros(1).expand(2**50)

    with pytest.raises(CompressionError, match=r"no room for what is not held in memory"):
        keep_in(tmp_path)(endless)


def test_a_cpu_without_bfloat16_gets_float32_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "is_emulated", lambda _model: True)
    widened: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        widened.append(tensor)
        return tensor

    model = open_paged(make_tiny_model(tmp_path / "m"), keep)

    assert len(widened) >= len(list(model.parameters()))
    assert model.lm_head.weight is model.model.embed_tokens.weight
