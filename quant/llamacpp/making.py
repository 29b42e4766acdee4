"""A bundle's folder with a quantized GGUF file in it."""

import ctypes
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import llama_cpp
from transformers import PreTrainedModel

from quant.calibration import Tokens
from quant.compressor import linear_layers
from quant.errors import CompressionError, ToolError
from quant.heldout import Figures
from quant.llamacpp.export import read_gguf, write_gguf
from quant.llamacpp.vocabulary import COARSEST, Reading, choose_pre, open_tokenizer
from quant.schemes import Scheme
from quant.screen import Screen
from quant.source import files_beside

FILE = "model.gguf"
BLOCK = 256  # weights that share a scale in llama.cpp's K formats
SHOWN = 60  # characters of a string that is read otherwise


def find_reading(
    source: Path,
    draft: Path,
    model: PreTrainedModel,
    sequences: Sequence[Tokens],
    screen: Screen,
) -> Reading:
    """Find out how llama.cpp would best read text for a model.

    Args:
        source: Folder of the model.
        draft: Folder for files of this function's own, removed again.
        model: The model.
        sequences: Rows of the log, whose text both tokenizers have to read alike.
        screen: Shows the progress.

    Raises:
        CompressionError: If llama.cpp cannot read the vocabulary at all.
    """
    quiet()
    screen.say("comparing tokenizers")
    tokenizer = open_tokenizer(source)
    if tokenizer.backend_tokenizer.normalizer is not None:
        screen.warn("the tokenizer normalizes text, llama.cpp does not: send it text that is so")
    texts = [tokenizer.decode(sequence) for sequence in sequences]
    write = partial(_write_vocabulary, model=model, folder=source)
    reading = choose_pre(source, draft, texts, write)
    if reading.pre == COARSEST:
        screen.warn(
            "llama.cpp does not know how this tokenizer cuts text; what the strings tried do not "
            "show, it may read as other tokens"
        )
    return reading


def make_gguf(
    source: Path,
    draft: Path,
    model: PreTrainedModel,
    scheme: Scheme,
    pre: str,
    screen: Screen,
) -> tuple[PreTrainedModel, dict[str, int]]:
    """Fill a bundle's folder: the file, and whatever of the model's folder is no weight.

    Args:
        source: Folder of the unquantized model.
        draft: Empty folder to fill.
        model: The unquantized model.
        scheme: ``gguf-`` and llama.cpp's name of a file type.
        pre: Name of the pre-tokenizer.
        screen: Shows the progress.

    Returns:
        The weights that the file holds, as a model in float32, and the bytes of each tensor.

    Raises:
        CompressionError: If the model cannot be written.
        ToolError: If llama.cpp does not quantize it.
    """
    plain = draft / "plain.gguf"
    screen.say("writing GGUF", sum(1 for _ in model.parameters()))
    write_gguf(plain, model, source, pre, screen.advance)
    odd = sum(layer.in_features % BLOCK > 0 for layer in linear_layers(model).values())
    if odd and "_k" in scheme.name:
        screen.warn(
            f"the width of {odd} layers is no multiple of {BLOCK}: llama.cpp gives them 5 or 8 bits"
        )
    screen.say("quantizing with llama.cpp")
    quantize(plain, draft / FILE, scheme)
    plain.unlink()
    for name in ("config.json", *files_beside(source)):
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, draft / name)
    return read_gguf(draft / FILE, source)


def quantize(source: Path, target: Path, scheme: Scheme) -> None:
    """Let llama.cpp quantize a file.

    Raises:
        ToolError: If it refuses.
    """
    kind = scheme.name.removeprefix("gguf-").upper()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    places = str(source).encode(), str(target).encode()
    if code := llama_cpp.llama_model_quantize(*places, ctypes.byref(params)):
        raise ToolError(f"llama.cpp does not quantize the model to {kind}: code {code}")


def judged(reading: Reading, *, is_forced: bool) -> Figures:
    """Refuse, or mark, a vocabulary with which llama.cpp reads text differently.

    Raises:
        CompressionError: If it was not forced.
    """
    figures = {"tokenizer_agreement": reading.agreement}
    if reading.differing is None:
        return figures
    if not is_forced:
        raise CompressionError(
            f"llama.cpp reads {1 - reading.agreement:.1%} of the strings tried as other tokens "
            f"than the model's tokenizer, under its nearest pre-tokenizer ({reading.pre}) too, "
            f"first {reading.differing[:SHOWN]!r}: nothing was published; use int8 or int4-gptq, "
            "in vLLM, or --force it"
        )
    return figures | {"forced": 1.0}


def quiet() -> None:
    """Keep llama.cpp and its file format from printing; their logs would tear the bar.

    The bindings call llama.cpp's warnings errors.
    """
    for name in ("llama-cpp-python", "gguf"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _write_vocabulary(path: Path, pre: str, model: PreTrainedModel, folder: Path) -> None:
    write_gguf(path, model, folder, pre)
