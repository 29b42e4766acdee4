from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from quant.blocks import (
    Passage,
    block_by_block,
    blocks_of,
    check_decoder,
    open_decoder,
    places,
)
from quant.errors import CompressionError
from quant.paged import keep_in
from tests.support.model_kinds import SUPPORTED, UNSUPPORTED, make_model
from tests.support.tiny_model import make_tiny_model

RANDOM = torch.Generator().manual_seed(0)
IDS = [torch.randint(5, 200, (rows, 8 + rows), generator=RANDOM) for rows in (1, 3)]


def logits(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    found: Tensor = model(ids_BT, use_cache=False).logits
    return found


def with_two_kinds_of_blocks() -> PreTrainedModel:
    """Whose blocks are given different masks and rotations."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(vocab_size=261, layer_types=kinds, **shape, **heads)
    torch.manual_seed(0)
    return Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_block_by_block_a_model_computes_the_very_same(tmp_path: Path, kind: str) -> None:
    llama = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path / "m"))
    model = {"llama": llama, "gemma3": with_two_kinds_of_blocks()}[kind]
    run = partial(logits, model)

    by_block = list(block_by_block(model, keep_in(tmp_path), run, IDS))

    with torch.inference_mode():
        assert all(torch.equal(one, run(ids)) for one, ids in zip(by_block, IDS, strict=True))


@pytest.mark.parametrize("kind", SUPPORTED)
def test_a_decoder_is_known_without_running_its_blocks(kind: str) -> None:
    model = make_model(kind)

    def ran(_block: nn.Module, _inputs: tuple[Tensor]) -> None:
        pytest.fail("a block has run")

    for block in blocks_of(model):
        block.register_forward_pre_hook(ran)
    check_decoder(model)


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_model_that_would_be_measured_wrongly_is_refused(tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    model.save_pretrained(tmp_path / "m")

    with pytest.raises(CompressionError, match=f"type {model.config.model_type} cannot be used"):
        open_decoder(tmp_path / "m", keep_in(tmp_path))


def test_every_block_sees_all_batches_before_the_next(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path / "m"))
    seen: list[tuple[int, int]] = []
    passage = Passage.start(model, partial(logits, model), IDS)

    def note(number: int, _block: nn.Module, _inputs: tuple[Tensor]) -> None:
        seen.append((number, passage.current))

    for number, block in enumerate(passage.blocks):
        block.register_forward_pre_hook(partial(note, number))
    list(passage.results())

    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_layer_outside_of_the_blocks_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path / "m", tied=False))

    found = places(model, {"head": model.lm_head, "up": model.model.layers[1].mlp.up_proj})

    assert found == {"head": 2, "up": 1}
    with pytest.raises(CompressionError, match="odd is in none of the model's blocks"):
        places(model, {"odd": nn.Linear(2, 2)})
