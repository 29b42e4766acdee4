"""One model, its log and its GGUF bundles, made by the command; collected with llama.cpp only."""

import string
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from quant.commands import quantize_app
from tests.support.answered_rows import answer, write_log
from tests.support.tiny_model import make_tiny_model

# Without the extra there is nothing to import here; `make test-gguf` installs it.
collect_ignore_glob = [] if find_spec("llama_cpp") else ["test_*.py"]
CONFIG = '[capture]\nlog = "log"\n[quant]\ncalibration_rows = 24\nheldout_fraction = 0.5\n'
SCHEMES = ("gguf-q8_0", "gguf-q4_k_m")


@dataclass(frozen=True)
class Made:
    home: Path
    model: Path
    bundles: dict[str, Path]


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("gguf")
    model = say_letters_only(make_tiny_model(home / "model", hidden_size=256, tied=False))
    write_log(answer(model, 40, tokens=4), home / "log", home / "spool")
    (home / "retort.toml").write_text(CONFIG)
    bundles = {name: home / name for name in SCHEMES}
    for name, out in bundles.items():
        assert quantize(model, "--scheme", name, "--out", out, "-c", home / "retort.toml") == 0
    return Made(home, model, bundles)


def say_letters_only(model: Path) -> Path:
    """Let a model's greedy answers be ASCII: a byte of a longer character has no text alone."""
    tensors = load_file(model / "model.safetensors")
    letters = [ord(letter) for letter in string.ascii_letters]
    vocabulary = AutoTokenizer.from_pretrained(model).get_vocab()
    kept = {vocabulary[chr(letter)] for letter in letters}
    head = tensors["lm_head.weight"]
    head[[number for number in range(len(head)) if number not in kept]] = 0
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


def quantize(*words: str | Path) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        quantize_app([str(word) for word in words], prog_name="retort quantize")
    return end.value.code
