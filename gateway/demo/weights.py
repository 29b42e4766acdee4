"""Weights as files: how many there are, and a model that has lost its mind."""

import json
import math
import shutil
from pathlib import Path
from typing import TypedDict

import numpy as np

HEADER_LENGTH_BYTES = 8
WORDS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


class Entry(TypedDict):
    """One tensor as a safetensors header describes it."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


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
    """Copy a model of floats with the numbers within each matrix in random order.

    Shapes, names and the spread of the values stay right; what was learnt is gone.
    """
    shutil.copytree(model, out)
    rng = np.random.default_rng(seed)
    for path in out.glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        start = HEADER_LENGTH_BYTES + int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
        for entry in _header(path).values():
            if len(entry["shape"]) > 1:
                count, first = math.prod(entry["shape"]), entry["data_offsets"][0]
                view = np.frombuffer(content, WORDS[entry["dtype"]], count, start + first)
                view[:] = rng.permutation(view)
        path.write_bytes(content)


def _header(path: Path) -> dict[str, Entry]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        header: dict[str, Entry] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header
