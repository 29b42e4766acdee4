"""Stable names for a model folder: what weights it holds, and how it reads and writes text."""

import hashlib
import json
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.gguf", "config.json")
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


def model_revision(folder: Path) -> str:
    """Return 16 hex digits over weights and configuration; equal for byte-equal models."""
    return _digest(folder, WEIGHTS)


def tokenizer_hash(folder: Path) -> str:
    """Return 16 hex digits over the tokenizer's files; equal ids mean equal text."""
    return _digest(folder, TOKENIZER)


def chat_template(folder: Path) -> str | None:
    """Return how a model folder turns messages into one prompt, None if it does not say."""
    template = folder / "chat_template.jinja"
    if template.is_file():
        return template.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    said = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    found = said.get("chat_template")
    if isinstance(found, list):  # several by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found


def context_length(folder: Path) -> int | None:
    """Most tokens that a model takes, prompt and answer; None if its configuration leaves it open.

    One that stretches its positions (``rope_scaling`` with a factor) takes more than it names; by
    how much is for the engine to say.
    """
    config = folder / "config.json"
    if not config.is_file():
        return None
    said = json.loads(config.read_text(encoding="utf-8"))
    said = said.get("text_config", said)
    scaling = said.get("rope_scaling") or said.get("rope_parameters") or {}
    length = said.get("max_position_embeddings")
    return length if isinstance(length, int) and "factor" not in scaling else None


def _digest(folder: Path, patterns: tuple[str, ...]) -> str:
    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
