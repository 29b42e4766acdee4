from pathlib import Path

import psutil
import pytest
from transformers import AutoModelForCausalLM

from quant.compressor import linear_layers
from quant.errors import CompressionError
from quant.memory import available_bytes, check_memory, free_in
from quant.schemes import find_scheme
from quant.target import Target
from tests.support.tiny_model import make_tiny_model

VERSIONS = {1: ("memory.limit_in_bytes", "total_rss"), 2: ("memory.max", "anon")}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_group_may_take_what_it_and_those_around_it_have_left(
    tmp_path: Path, version: int
) -> None:
    limit, used = VERSIONS[version]
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder, most in ((inner, "max" if version == 2 else 2**63), (inner.parent, 1000)):
        (folder / limit).write_text(f"{most}\n")
        (folder / "memory.stat").write_text(f"cache 500\n{used} 300\n")

    free = free_in(tmp_path, "/outer/inner", limit, used)

    assert min(free) == 700
    assert 0 < available_bytes() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("int4-rtn", "avx512", "cannot be tried: choose a scheme of fewer bits, or --no-check"),
        ("fp8", "hopper", "needs the whole model in memory, in float32: .* int4-gptq"),
    ],
)
def test_what_cannot_fit_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: Target, expected: str
) -> None:
    monkeypatch.setattr("quant.memory.available_bytes", lambda: 10)
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path / "m"))
    scheme = find_scheme(name, target)

    with pytest.raises(CompressionError, match=expected):
        check_memory(scheme, model, linear_layers(model), is_tried=True)


def test_untried_a_scheme_that_goes_by_layer_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant.memory.available_bytes", lambda: 0)
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path / "m"))

    check_memory(find_scheme("int8", "avx512"), model, linear_layers(model), is_tried=False)
