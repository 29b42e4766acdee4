"""What of GGUF is decided before llama.cpp is needed, and without it."""

import json
import shutil
from pathlib import Path

import pytest

from capture.engine import Engine, EngineSpec
from capture.errors import ConfigError, EngineError
from capture.revision import model_revision
from quant.commands import quantize_app
from quant.errors import SchemeError, ToolError
from quant.llamacpp import extra
from quant.schemes import find_scheme, served
from quant.target import TARGETS, Target
from tests.support.tiny_model import make_tiny_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, on a machine that has what is asked for."""
    monkeypatch.setattr(extra, "PACKAGES", ("json",))
    return make_tiny_model(tmp_path / "model")


def change(model: Path, **keys: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | keys))


def test_a_model_that_can_be_written_passes(model: Path) -> None:
    extra.check(model)


def test_without_llama_cpp_the_command_says_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extra, "PACKAGES", ("json", "no_such_package_of_ours"))
    words = [str(model), "--scheme=gguf-q8_0", f"--out={model}-out"]

    with pytest.raises(ToolError, match=r"no_such_package_of_ours is .*retort-llm\[gguf\]"):
        quantize_app(words, prog_name="retort quantize")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"model_type": "gemma3"}, r"model_type is 'gemma3', expected one of llama, mistral, "),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3'"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding window"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}, "sliding"),
    ],
)
def test_an_architecture_that_cannot_be_written_is_refused(
    model: Path, keys: dict[str, object], why: str
) -> None:
    change(model, **keys)

    with pytest.raises(SchemeError, match=rf"no GGUF of it: .*{why}.*; use int8"):
        extra.check(model)


def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused(model: Path) -> None:
    path = model / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["type"] = "Unigram"
    path.write_text(json.dumps(document))

    with pytest.raises(SchemeError, match="tokenizer is Unigram, expected byte-level BPE"):
        extra.check(model)
    path.unlink()
    with pytest.raises(SchemeError, match=r"no tokenizer\.json"):
        extra.check(model)


@pytest.mark.parametrize("target", TARGETS)
def test_it_can_be_made_anywhere_and_vllm_serves_it_nowhere(target: Target) -> None:
    scheme = find_scheme("gguf-q4_k_m", target)

    assert "vLLM reads no GGUF" in scheme.kernel(target)
    assert scheme not in served(target)


def test_the_matrix_measures_what_vllm_serves(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"gguf-q8_0 is for llama\.cpp.*retort quantize MODEL"):
        quantize_app(["matrix", str(model), "--schemes=gguf-q8_0"], prog_name="retort quantize")


def test_vllm_is_not_started_on_it(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "model.gguf")

    with pytest.raises(EngineError, match=r"holds GGUF, which vLLM does not read; .* `url`"):
        Engine.start(EngineSpec(model, "m", tmp_path / "engine.log"))


def test_the_weights_in_it_count_for_the_revision(model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    (model / "model.gguf").write_bytes(b"GGUF 1")
    (other / "model.gguf").write_bytes(b"GGUF 2")

    assert model_revision(model) != model_revision(other)
