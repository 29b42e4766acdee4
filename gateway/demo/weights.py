"""Weights as files: how many there are, and a model that has lost its mind."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HEADER_LENGTH_BYTES = 8


def count_parameters(model: Path) -> int:
    """Numbers stored in a model folder's safetensors files."""
    return sum(
        math.prod(entry["shape"])
        for path in model.glob("*.safetensors")
        for entry in _header(path).values()
    )


def size_bytes(model: Path) -> int:
    """Bytes of a model folder's safetensors files."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def scramble(model: Path, out: Path, seed: int) -> None:
    """Copy a 16-bit model with the numbers within each matrix in random order.

    Shapes, names and the spread of the values stay right; what was learnt is gone.
    """
    shutil.copytree(model, out)
    rng = np.random.default_rng(seed)
    for path in out.glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        start = HEADER_LENGTH_BYTES + int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
        for first, last in _matrices(path):
            view = np.frombuffer(content, np.uint16, (last - first) // 2, start + first)
            view[:] = rng.permutation(view)
        path.write_bytes(content)


def _matrices(path: Path) -> Iterator[tuple[int, int]]:
    """Byte range of each matrix, from the end of the header."""
    for entry in _header(path).values():
        if len(entry["shape"]) > 1:
            first, last = entry["data_offsets"]
            yield first, last


def _header(path: Path) -> dict[str, dict[str, list[int]]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        header: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header
