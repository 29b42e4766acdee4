"""What both adapters of the tap share, where neither's own tests lead."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig
from vllm.transformers_utils.config import get_hf_text_config

from capture.tapping import eos_ids


def model(kind: str, generation: dict[str, object], **fields: object) -> Any:
    """The part of ``VllmConfig`` that tells what ends a text."""
    hf_config = AutoConfig.for_model(kind, **fields)
    return SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=hf_config,
            hf_text_config=get_hf_text_config(hf_config),
            try_get_generation_config=lambda: generation,
        )
    )


@pytest.mark.parametrize("kind", ["gpt2", "llava", "qwen3_vl"])
def test_the_generation_config_says_what_ends_a_text(kind: str) -> None:
    assert eos_ids(model(kind, {"eos_token_id": [7, 8]})) == {7, 8}


@pytest.mark.parametrize(
    ("kind", "expected"), [("gpt2", {50256}), ("llava", {2}), ("qwen3_vl", set())]
)
def test_without_one_the_models_own_config_does_or_that_of_its_text(
    kind: str, expected: set[int]
) -> None:
    assert eos_ids(model(kind, {})) == expected


def test_a_composite_config_goes_before_that_of_its_text() -> None:
    assert eos_ids(model("llava", {}, eos_token_id=[5])) == {5}
