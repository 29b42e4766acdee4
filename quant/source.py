"""The model folder that a bundle is made of: its weights, and what goes along with them."""

from pathlib import Path

from quant.errors import CompressionError
from trainer.folder import PICKLES, list_files, read_json
from trainer.manifest import MANIFEST

WHOLE = "model.safetensors"
INDEX = f"{WHOLE}.index.json"
WEIGHTS = PICKLES | {".safetensors", ".gguf", ".onnx", ".h5", ".msgpack"}
WRITTEN_HERE = (MANIFEST, "config.json")


def check_source(folder: Path) -> None:
    """See before any work that a bundle can be made of a folder.

    Raises:
        ManifestError: As ``files_beside``.
        CompressionError: As ``shards_of``.
    """
    files_beside(folder)
    shards_of(folder)


def shards_of(folder: Path) -> list[str]:
    """Return the names of the files that transformers and vLLM read the model's weights from.

    Other weights, like the ``consolidated.safetensors`` of Mistral's models, are not among them.

    Raises:
        CompressionError: If the folder does not say, or one is missing.
    """
    there = {path.name for path in folder.glob("*.safetensors")}
    index = folder / INDEX
    if not index.is_file():
        if WHOLE in there:
            return [WHOLE]
        raise CompressionError(
            f"{folder}: no {WHOLE} and no {INDEX}; copy the folder again, whole, or if its weights "
            "are in another format convert it to safetensors"
        )
    names = _named_in(index)
    for name in sorted(names - there):
        raise CompressionError(
            f"{index}: names {name}, which is not there; copy the folder again, whole"
        )
    if WHOLE in there - names:  # transformers would read this one, vLLM the others
        raise CompressionError(
            f"{folder}: holds {WHOLE} and an index that does not name it; remove one of them"
        )
    return sorted(names)


def weights_size(folder: Path) -> int:
    """Bytes of the weights: of ``shards_of``, or of all safetensors where that cannot tell."""
    try:
        paths = [folder / name for name in shards_of(folder)]
    except CompressionError:
        paths = [*folder.glob("*.safetensors")]
    return sum(path.stat().st_size for path in paths)


def files_beside(folder: Path) -> list[str]:
    """Return the paths of what a bundle gets as it is: all but weights, manifest and config.

    Links are followed where they are those of a Hugging Face cache, whose files lie in ``blobs``.

    Raises:
        ManifestError: If the folder holds code, asks for it, or holds another link.
    """
    blobs = folder.resolve().parent.parent / "blobs"
    names = list_files(folder, left_out=WEIGHTS, blobs=blobs)
    return [n for n in names if n not in WRITTEN_HERE and not n.endswith(".index.json")]


def _named_in(index: Path) -> set[str]:
    document = read_json(index)
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not places:
        raise CompressionError(f"{index}: no weight_map in it; copy the folder again, whole")
    return {str(name) for name in places.values()}
