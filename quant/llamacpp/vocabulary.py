"""A Hugging Face tokenizer in GGUF, and whether llama.cpp reads text with it as it was meant.

llama.cpp has no place for a tokenizer's own regular expression: a file names one of those that
it knows. Which of them fits is found by comparing ids, on awkward strings and on the log's text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import llama_cpp
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from quant.errors import CompressionError
from quant.llamacpp.awkward import STRINGS, with_special

# From the finest to the coarsest, so that a tokenizer finds its own first: GPT-2's with single
# digits, GPT-2's, Qwen2's, Llama 3's, and one that cuts at numbers only. The last is right for
# home-made ones whose merges never cross what their expression cuts.
COARSEST = "superbpe"
PRE_TOKENIZERS = ("smollm", "gpt-2", "qwen2", "llama-bpe", COARSEST)

NO_MERGE = "\u2205 \u2205"  # llama.cpp wants one; this letter stands for no byte

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Reading:
    """How llama.cpp reads text under one pre-tokenizer.

    Attributes:
        pre: Its name in ``tokenizer.ggml.pre``.
        agreement: Share of the strings that become the same ids.
        differing: The first that does not; None if all do.
    """

    pre: str
    agreement: float
    differing: str | None


def write_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int, pre: str) -> None:
    """Add tokens, merges, special tokens and chat template of a model's folder.

    Args:
        writer: Takes them.
        folder: Holds the tokenizer.
        size: Rows of the embedding; ids without a token are marked unused.
        pre: Name of the pre-tokenizer.
    """
    tokenizer = open_tokenizer(folder)
    names = {number: name for name, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for number in range(size):
        tokens.append(names.get(number, f"[UNUSED{number}]"))
        kind = gguf.TokenType.NORMAL if number in names else gguf.TokenType.UNUSED
        if number in added:
            is_special = added[number].special
            kind = gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED
        kinds.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.add_special_token |= {  # a file that says nothing gets a beginning
        "bos": _adds(tokenizer, tokenizer.bos_token_id, 0),
        "eos": _adds(tokenizer, tokenizer.eos_token_id, -1),
    }
    if not special.merges:
        writer.add_token_merges([NO_MERGE])
    special.add_to_gguf(writer, quiet=True)


def choose_pre(
    folder: Path, scratch: Path, texts: Sequence[str], write: Callable[[Path, str], None]
) -> Reading:
    """Find the pre-tokenizer under which most strings become the ids they should.

    Args:
        folder: Holds the tokenizer.
        scratch: Folder for files of this function's own, removed again.
        texts: Strings to compare on beside the awkward ones.
        write: Writes a file without tensors to a path, under a pre-tokenizer.

    Raises:
        CompressionError: If llama.cpp cannot read the vocabulary at all.
    """
    tokenizer = open_tokenizer(folder)
    special = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
    normalizer = tokenizer.backend_tokenizer.normalizer
    best: Reading | None = None
    for pre in PRE_TOKENIZERS:
        path = scratch / f"{pre}.vocabulary.gguf"
        write(path, pre)
        with reading(path) as tokenize:
            strings = [*with_special(STRINGS, special), *texts]
            differing = [
                text
                for text in strings
                # llama.cpp normalizes nothing; what it is given has to be so already.
                if tokenize(normalizer.normalize_str(text) if normalizer else text)
                != tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            ]
        path.unlink()
        agreement = 1 - len(differing) / len(strings)
        if best is None or agreement > best.agreement:
            best = Reading(pre, agreement, differing[0] if differing else None)
        if not differing:
            break
    if best is None:
        raise ValueError("no pre-tokenizer to choose from")
    return best


@contextmanager
def reading(path: Path) -> Iterator[Tokenize]:
    """Open a file's vocabulary alone; the function given turns text into ids, special ones too.

    Raises:
        CompressionError: If llama.cpp cannot read it.
    """
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if model is None:
        raise CompressionError(f"{path.name}: llama.cpp cannot read the vocabulary")
    vocabulary = llama_cpp.llama_model_get_vocab(model)

    def tokenize(text: str) -> list[int]:
        raw = text.encode()
        ids = (llama_cpp.llama_token * (len(raw) + 1))()  # never more tokens than bytes
        count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, len(ids), False, True)  # noqa: FBT003 - C
        return list(ids[:count])

    try:
        yield tokenize
    finally:
        llama_cpp.llama_model_free(model)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model's folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _adds(tokenizer: PreTrainedTokenizerFast, token: int | None, place: int) -> bool:
    """Whether a tokenizer puts a token at an end of each text by itself."""
    ids = tokenizer("a")["input_ids"]
    return token is not None and ids[place] == token
