"""A finished student on disk: a model folder that serves as it is, put in place whole."""

import copy
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from transformers import PreTrainedModel

from trainer.errors import FullDiskError
from trainer.manifest import Lineage, Manifest, write_manifest
from trainer.student import count_parameters

# What decides how text becomes ids and back, and how generation ends.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def save_checkpoint(
    student: PreTrainedModel,
    companions: Path,
    folder: Path,
    *,
    lineage: Lineage,
    quality: dict[str, float],
) -> Manifest:
    """Write the student in bfloat16 with its tokenizer, template and generation config.

    Whoever looks at ``folder`` sees the old
    checkpoint or the new one, never a part; an interrupted call leaves nothing behind.

    Args:
        student: The model.
        companions: Folder of those: the teacher's, or of a student that brought its own.
        folder: Replaced.
        lineage: What it was made from.
        quality: Figures for its manifest.

    Raises:
        FullDiskError: If the weights cannot be written.
    """
    with replacing(folder) as temporary, disk_errors(folder):
        copy.deepcopy(student).to(torch.bfloat16).save_pretrained(temporary)
        for name in COMPANIONS:
            if (companions / name).is_file():
                shutil.copyfile(companions / name, temporary / name)
        return write_manifest(
            temporary,
            kind="checkpoint",
            lineage=lineage,
            parameters=count_parameters(student),
            quality=quality,
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that takes its place if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Say what to do about weights that cannot be written into a folder.

    Raises:
        FullDiskError: If they cannot be.
    """
    try:
        yield
    except SafetensorError as error:
        raise FullDiskError(
            f"{folder}: cannot be written ({error}); make room and run again, it goes on from what "
            "it saved"
        ) from error


def write_json(path: Path, document: dict[str, JsonValue]) -> None:
    """Put a JSON file in place whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
