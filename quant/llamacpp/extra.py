"""Whether llama.cpp is installed and knows a model, said before any work; loads neither."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quant.errors import SchemeError, ToolError

PACKAGES = ("llama_cpp", "gguf")
# By transformers' model type; the name llama.cpp has for it.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def check(folder: Path) -> None:
    """See that GGUF can be made of a model.

    Raises:
        ToolError: If llama.cpp's Python packages are missing.
        SchemeError: If the model's architecture or tokenizer cannot be written.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ToolError(
            f"GGUF is made by llama.cpp, and {', '.join(missing)} is not installed: "
            "`pip install 'retort-llm[gguf]'`, which compiles llama.cpp for 5 to 20 minutes and "
            "needs a C++ compiler"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if why := _unwritable(config) or _unreadable(folder / "tokenizer.json"):
        raise SchemeError(f"{folder}: no GGUF of it: {why}; use int8 or int4-gptq, in vLLM")


def _unwritable(config: Mapping[str, Any]) -> str:
    """Why an architecture cannot be written; empty if it can."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return f"model_type is {kind!r}, expected one of {', '.join(ARCHITECTURES)}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        return f"its rope_type is {rope_type!r}, expected 'default'"
    has_window = kind == "mistral" or config.get("use_sliding_window")
    if has_window and config.get("sliding_window"):
        return "its attention looks through a sliding window"
    return ""


def _unreadable(tokenizer: Path) -> str:
    """Why llama.cpp could not read text as a tokenizer does; empty if it may."""
    if not tokenizer.is_file():
        return "it has no tokenizer.json"
    document = json.loads(tokenizer.read_text(encoding="utf-8"))
    kind = document["model"].get("type")
    if kind != "BPE" or "ByteLevel" not in json.dumps(document.get("decoder")):
        return f"its tokenizer is {kind}, expected byte-level BPE"
    return ""
