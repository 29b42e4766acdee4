"""``retort.json``: what a model folder holds, what made it, and whether that is still true.

A checkpoint and a bundle are Hugging Face model folders plus this file. Nothing here loads a
model: files are only named, measured and hashed, so a folder can be refused before any of it
runs.
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from capture.revision import tokenizer_hash
from trainer.errors import ManifestError
from trainer.folder import list_files, read_json

FORMAT_VERSION: Literal[1] = 1
MANIFEST = "retort.json"
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")

Count = Annotated[int, Field(ge=0)]
Kind = Literal["checkpoint", "bundle"]


class FileEntry(BaseModel):
    """One file of the folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size_bytes: Count


class Lineage(BaseModel):
    """What a model was made from.

    Attributes:
        snapshot: The log's snapshot it learned from; None for a model not trained here.
        teacher_revision: Revision of the model whose distribution was learned.
        parent_revision: Revision of the weights it started from.
        scheme: Quantization scheme of a bundle.
        recipe: Settings of the run that made it.
        calibration_digest: Digest of the ids of the log rows that calibration read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    snapshot: dict[str, JsonValue] | None = None
    teacher_revision: str | None = None
    parent_revision: str | None = None
    scheme: str | None = None
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    calibration_digest: str | None = None


class Manifest(BaseModel):
    """The content of ``retort.json``.

    Attributes:
        files: Every file of the folder but this one, by its path in the folder.
        quality: Measured figures by name; names end in their unit.
        parameters: Number of weights, embeddings included.
        size_bytes: Sum over ``files``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = FORMAT_VERSION
    kind: Kind
    created_at: datetime
    lineage: Lineage
    tokenizer_hash: str
    chat_template_hash: str
    files: dict[str, FileEntry]
    quality: dict[str, float]
    parameters: Count
    size_bytes: Count


def chat_template_hash(folder: Path) -> str:
    """Return 16 hex digits over the chat template, wherever the folder keeps it."""
    total = hashlib.sha256()
    for path in (folder / name for name in CHAT_TEMPLATES):
        total.update(path.read_bytes() if path.is_file() else b"")
    settings = folder / "tokenizer_config.json"
    document = read_json(settings) if settings.is_file() else None
    template = document.get("chat_template") if isinstance(document, dict) else None
    total.update(json.dumps(template).encode() if template else b"")
    return total.hexdigest()[:16]


def write_manifest(
    folder: Path, *, kind: Kind, lineage: Lineage, parameters: int, quality: dict[str, float]
) -> Manifest:
    """Hash every file of a finished folder and put its ``retort.json`` in place, durably.

    Raises:
        ManifestError: If the folder holds a file that ``verify_folder`` would refuse.
    """
    names = [name for name in list_files(folder) if name != MANIFEST]
    files = {name: _describe(folder / name) for name in names}
    manifest = Manifest(
        kind=kind,
        created_at=datetime.now(UTC),
        lineage=lineage,
        tokenizer_hash=tokenizer_hash(folder),
        chat_template_hash=chat_template_hash(folder),
        files=files,
        quality=quality,
        parameters=parameters,
        size_bytes=sum(entry.size_bytes for entry in files.values()),
    )
    temporary = folder / f"{MANIFEST}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read ``retort.json`` without looking at the files it names.

    Raises:
        ManifestError: If it is missing, malformed or of another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such file; expected a folder made by `retort distill` or `retort quantize`"
        )
    document = read_json(path)
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise ManifestError(
            f"{path}: format version {version!r}, this retort reads {FORMAT_VERSION}; "
            "use the retort that wrote it, or make the folder again"
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ManifestError(f"{path}: {key}: {first['msg']}; make the folder again") from error


def verify_folder(folder: Path) -> Manifest:
    """Check that the folder is exactly what its ``retort.json`` says, and safe to load.

    Raises:
        ManifestError: If a file is missing, added or changed, is code, a pickle or a link, asks
            for code (``auto_map``) or lies outside the folder; names the file.
    """
    manifest = read_manifest(folder)
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ManifestError(f"{folder / MANIFEST}: {name!r} leaves the folder; do not use it")
    found = set(list_files(folder)) - {MANIFEST}
    for name in sorted(manifest.files.keys() - found):
        raise ManifestError(f"{folder / name}: missing; copy the folder again, whole")
    for name in sorted(found - manifest.files.keys()):
        raise ManifestError(f"{folder / name}: not named in {MANIFEST}; remove it")
    for name, expected in manifest.files.items():
        actual = _describe(folder / name)
        if actual != expected:
            raise ManifestError(
                f"{folder / name}: {actual.size_bytes} bytes with SHA-256 {actual.sha256[:12]}..., "
                f"expected {expected.size_bytes} with {expected.sha256[:12]}...; "
                "copy the folder again, or make it again"
            )
    _check_hashes(folder, manifest)
    return manifest


def _check_hashes(folder: Path, manifest: Manifest) -> None:
    """Refuse a manifest whose tokenizer or template is not the folder's own."""
    hashes = {
        "tokenizer_hash": (manifest.tokenizer_hash, tokenizer_hash(folder)),
        "chat_template_hash": (manifest.chat_template_hash, chat_template_hash(folder)),
    }
    for name, (written, actual) in hashes.items():
        if written != actual:
            raise ManifestError(
                f"{folder / MANIFEST}: {name} is {written}, the files give {actual}; "
                "make the folder again"
            )


def _describe(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, size_bytes=path.stat().st_size)
