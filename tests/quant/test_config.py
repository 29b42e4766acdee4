from pathlib import Path

import pytest

from capture.errors import ConfigError
from quant.config import load


@pytest.mark.parametrize("size", [32, 64, 128])
def test_groups_that_every_kernel_takes_may_be_chosen(tmp_path: Path, size: int) -> None:
    path = tmp_path / "retort.toml"
    path.write_text(f"[quant]\ngroup_size = {size}\n")

    assert load(path).group_size == size


@pytest.mark.parametrize("size", [3, 16, 48, 256])
def test_groups_that_no_gpu_has_a_kernel_for_are_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "retort.toml"
    path.write_text(f"[quant]\ngroup_size = {size}\n")

    with pytest.raises(ConfigError, match=rf"group_size is {size}: .* 32, 64 or 128"):
        load(path)
