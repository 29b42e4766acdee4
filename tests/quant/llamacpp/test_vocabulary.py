"""llama.cpp reads text as the model's own tokenizer does, or the model is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import llama_cpp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quant.errors import CompressionError
from quant.llamacpp import awkward
from quant.llamacpp.export import write_gguf
from quant.llamacpp.making import judged, quiet
from quant.llamacpp.vocabulary import COARSEST, Reading, choose_pre, reading
from tests.support.stranger import make_stranger
from tests.support.tiny_model import SPECIAL, TEMPLATE, make_tiny_model
from trainer.support_desk.tokenizer import PIECES

pytestmark = pytest.mark.gguf
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
HOME_MADE = r"[\p{L}_]+|\p{N}|[^\s\p{L}\p{N}_]+|\s"
EXACT = {"gpt-2": GPT2, "llama-bpe": LLAMA3, "qwen2": QWEN2, "superbpe": HOME_MADE}
Write = Callable[[Path, str], None]


def make_model(folder: Path, pieces: str) -> Path:
    """A model whose tokenizer cuts text by an expression and is trained on awkward strings."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [awkward.LETTERS, awkward.DIGITS, awkward.JSON, awkward.CODE, awkward.URLS]
    tokenizer.train_from_iterator([*texts * 3, *awkward.SPACES * 9, awkward.SCRIPTS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=TEMPLATE,
    )
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size() + 3, num_hidden_layers=1, **shape)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def choose(folder: Path, scratch: Path) -> tuple[Reading, Write]:
    quiet()
    model = LlamaForCausalLM.from_pretrained(folder)
    write = partial(_write, model=model, folder=folder)
    return choose_pre(folder, scratch, [], write), write


def _write(path: Path, pre: str, model: LlamaForCausalLM, folder: Path) -> None:
    write_gguf(path, model, folder, pre)


@pytest.mark.parametrize("pre", EXACT)
def test_the_pre_tokenizer_that_fits_is_found(pre: str, tmp_path: Path) -> None:
    found, _ = choose(make_model(tmp_path / "model", EXACT[pre]), tmp_path)

    assert found == Reading(pre, 1.0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_without_merges_is_read_too(tmp_path: Path) -> None:
    found, _ = choose(make_tiny_model(tmp_path / "model"), tmp_path)

    assert found.agreement == 1


def test_one_that_llama_cpp_cannot_imitate_is_refused_unless_forced(tmp_path: Path) -> None:
    found, _ = choose(make_model(tmp_path / "model", PIECES), tmp_path)

    with pytest.raises(CompressionError, match=r"reads .*% of the strings tried as other tokens"):
        judged(found, is_forced=False)
    assert 0.5 < found.agreement < 1
    assert judged(found, is_forced=True) == {"tokenizer_agreement": found.agreement, "forced": 1.0}


@pytest.fixture(scope="module", params=EXACT)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, PreTrainedTokenizerFast]:
    home = tmp_path_factory.mktemp("pair")
    folder = make_model(home / "model", EXACT[request.param])
    found, write = choose(folder, home)
    write(home / "vocabulary.gguf", found.pre)
    return found.pre, home / "vocabulary.gguf", AutoTokenizer.from_pretrained(folder)


@given(data=st.data())
def test_any_text_becomes_the_same_ids(
    pair: tuple[str, Path, PreTrainedTokenizerFast], data: st.DataObject
) -> None:
    pre, path, tokenizer = pair
    highest = 127 if pre == COARSEST else None
    letters = st.characters(max_codepoint=highest, exclude_categories=["Cs"])
    texts = data.draw(st.lists(st.text(letters, max_size=80), min_size=20, max_size=40))

    with reading(path) as tokenize:
        for text in texts:
            assert tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_under_the_coarsest_a_symbol_may_stick_to_a_letter_by_its_first_byte(
    tmp_path: Path,
) -> None:
    folder = make_model(tmp_path / "model", HOME_MADE)
    _, write = choose(folder, tmp_path)
    write(tmp_path / "vocabulary.gguf", COARSEST)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    with reading(tmp_path / "vocabulary.gguf") as tokenize:
        # The tokenizer knows "f" with the first byte of "é", and that of the sign is the same.
        assert tokenize("f\u00e9") == tokenizer("f\u00e9")["input_ids"]
        assert tokenize("f\u00d7") != tokenizer("f\u00d7")["input_ids"]


def test_a_beginning_is_added_only_where_the_tokenizer_adds_one(tmp_path: Path) -> None:
    folder = make_stranger(tmp_path / "stranger")
    _, write = choose(folder, tmp_path)
    write(tmp_path / "vocabulary.gguf", "gpt-2")

    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == ids_of(tmp_path, "a")


def ids_of(home: Path, text: str) -> list[int]:
    """Ids as llama.cpp gives them when it may add what the file tells it to."""
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    path = str(home / "vocabulary.gguf").encode()
    model = llama_cpp.llama_model_load_from_file(path, params)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    ids = (llama_cpp.llama_token * 8)()
    count = llama_cpp.llama_tokenize(vocabulary, text.encode(), len(text), ids, 8, True, True)
    llama_cpp.llama_model_free(model)
    return list(ids[:count])
