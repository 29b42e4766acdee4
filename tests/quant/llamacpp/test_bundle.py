"""A GGUF bundle as the command makes it."""

import json
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from transformers import AutoTokenizer

from capture.revision import model_revision
from quant.agreement import own_logprobs
from quant.bundle import BundleError, verify_bundle
from quant.errors import CompressionError
from quant.llamacpp.export import read_gguf
from quant.llamacpp.making import FILE, make_gguf
from quant.llamacpp.trial import llama_logprobs, open_llama, try_llama
from quant.schemes import find_scheme
from quant.screen import Screen
from quant.target import this_target
from tests.quant.llamacpp.conftest import SCHEMES, Made
from tests.support.tiny_model import make_tiny_model
from trainer.manifest import read_manifest, verify_folder
from trainer.student import open_teacher

pytestmark = pytest.mark.gguf
KINDS = {"gguf-q8_0": {"Q8_0"}, "gguf-q4_k_m": {"Q4_K", "Q6_K"}}
END = "<|end|>"
CHAT = [
    {"role": "system", "content": "  You answer. "},
    {"role": "user", "content": "héllo <|end|> 中文 {{ x }}\n"},
    {"role": "assistant", "content": '{"a": 1}'},
    {"role": "user", "content": ""},
]


def sequences() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(5, 261, 24) for _ in range(4)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_bundle_is_a_model_folder_with_gguf_for_weights(made: Made, scheme: str) -> None:
    manifest = verify_folder(made.bundles[scheme])
    kinds = {
        tensor.tensor_type.name
        for tensor in gguf.GGUFReader(made.bundles[scheme] / FILE).tensors
        if len(tensor.shape) > 1
    }

    copied = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(manifest.files) == {FILE, "chat_template.jinja", *copied}
    for name in copied:
        assert (made.bundles[scheme] / name).read_bytes() == (made.model / name).read_bytes()
    assert manifest.lineage.scheme == scheme
    assert manifest.lineage.parent_revision == model_revision(made.model)
    assert kinds == KINDS[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_manifest_says_what_it_keeps_and_that_llama_cpp_agrees(made: Made, scheme: str) -> None:
    quality = read_manifest(made.bundles[scheme]).quality

    assert quality["engine_checked"] == 1
    assert quality["tokenizer_agreement"] == 1
    assert 0 < quality["engine_logprob_mean_nats"] < 0.05
    assert 0 < quality["kl_to_parent_nats"] < 1
    assert quality["rows"] > 0
    low, high = (0.26, 0.27) if scheme == "gguf-q8_0" else (0.14, 0.18)  # of float32
    assert low < quality["layers_size_ratio"] < high


@pytest.mark.parametrize("scheme", SCHEMES)
def test_llama_cpp_computes_with_a_file_what_was_measured(scheme: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    parent = open_teacher(folder, torch.device("cpu"))
    (tmp_path / "bundle").mkdir()
    with Screen.opened() as screen:
        chosen = find_scheme(scheme, this_target())
        held, _ = make_gguf(folder, tmp_path / "bundle", parent, chosen, "gpt-2", screen)
    with closing(open_llama(tmp_path / "bundle" / FILE, 64, 1)) as llama:
        theirs = np.concatenate([llama_logprobs(llama, ids) for ids in sequences()])

    ours, before = (
        np.concatenate([own_logprobs(model, ids) for ids in sequences()])
        for model in (held, parent)
    )
    # An input halfway between two steps may fall to either side, and moves all that follows.
    assert np.median(np.abs(theirs - ours)) < 1e-4
    assert 1e-3 < np.abs(theirs - before).mean() < (0.05 if scheme == "gguf-q8_0" else 0.25)


def test_bundles_of_other_weights_have_other_revisions(made: Made) -> None:
    revisions = {model_revision(folder) for folder in made.bundles.values()}

    assert len(revisions) == len(SCHEMES)


def test_an_engine_that_computes_something_else_is_found_out(made: Made) -> None:
    bundle = made.bundles["gguf-q8_0"]
    held, _ = read_gguf(bundle / FILE, made.model)

    figures = try_llama(bundle, held, sequences(), made.model, 1)
    with torch.no_grad():
        held.model.layers[0].mlp.up_proj.weight.mul_(0.5)
    with pytest.raises(CompressionError, match=r"llama\.cpp computes something else"):
        try_llama(bundle, held, sequences(), made.model, 1)

    assert figures["engine_logprob_mean_nats"] < 0.05


def test_a_model_that_llama_cpp_would_not_stop_is_refused(made: Made, tmp_path: Path) -> None:
    bundle = made.bundles["gguf-q8_0"]
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((bundle / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(
        json.dumps(settings | {"eos_token_id": [1, 3]})
    )
    held, _ = read_gguf(bundle / FILE, made.model)

    with pytest.raises(CompressionError, match=r"end with token 3, and llama\.cpp would go on"):
        try_llama(tmp_path, held, sequences(), made.model, 1)


def test_the_gateway_refuses_it_for_vllm(made: Made) -> None:
    with pytest.raises(BundleError, match=r"holds GGUF, which vLLM does not read; .*`url`"):
        verify_bundle(made.bundles["gguf-q8_0"], tokenizer_hash=None)


@pytest.mark.parametrize("messages", [CHAT[:1], CHAT[1:2], CHAT, CHAT * 3])
def test_a_chat_becomes_the_same_prompt(made: Made, messages: list[dict[str, str]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.model)
    with closing(open_llama(made.bundles["gguf-q8_0"] / FILE, 64, 1)) as llama:
        template = llama.metadata["tokenizer.chat_template"]
        formatter = Jinja2ChatFormatter(template, eos_token=END, bos_token="")
        text = formatter(messages=messages).prompt
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)

    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert text == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert ids == wanted["input_ids"]
