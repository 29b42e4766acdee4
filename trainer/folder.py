"""Which files a model folder holds; code, pickles and links are refused before anything loads."""

import json
import os
from collections.abc import Collection
from pathlib import Path

from pydantic import JsonValue

from trainer.errors import ManifestError

CODE = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh"})
PICKLES = frozenset(
    {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".t7"}
)


def list_files(
    folder: Path, *, left_out: Collection[str] = (), blobs: Path | None = None
) -> list[str]:
    """Return the sorted paths of all files, relative to the folder, with ``/``.

    Args:
        folder: To look through.
        left_out: Suffixes of files that are neither checked nor returned.
        blobs: Folder in which files may lie that links lead to; None allows no link.

    Raises:
        ManifestError: If one is code, may be a pickle, is a link or no regular file, or is JSON
            that asks for code (``auto_map``).
    """
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        for path in (Path(root) / name for name in [*folders, *files]):
            if path.is_symlink() and path.resolve().parent != blobs:
                raise ManifestError(
                    f"{path}: a symbolic link; replace it by the file itself (`cp -rL` copies a "
                    "folder so)"
                )
        for path in (Path(root) / name for name in files):
            if path.suffix.lower() not in left_out:
                _check(path)
                names.append(path.relative_to(folder).as_posix())
    return sorted(names)


def read_json(path: Path) -> JsonValue:
    """Read a JSON file of a model folder.

    Raises:
        ManifestError: If it is no JSON.
    """
    try:
        document: JsonValue = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not valid JSON ({error}); make the folder again") from error
    return document


def _check(path: Path) -> None:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ManifestError(f"{path}: not a regular file; remove it")
    if suffix in CODE:
        raise ManifestError(f"{path}: holds code, expected data only; remove it")
    if suffix in PICKLES:
        raise ManifestError(
            f"{path}: may be a pickle, which runs code when loaded; convert it to safetensors"
        )
    if suffix == ".json" and _asks_for_code(read_json(path)):
        raise ManifestError(
            f"{path}: holds auto_map, which loads code from the folder; "
            "use a model that transformers knows by itself"
        )


def _asks_for_code(document: JsonValue) -> bool:
    pending: list[JsonValue] = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "auto_map" in value:
                return True
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return False
