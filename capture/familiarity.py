"""How far a prompt is from those that a model was trained on, by its text alone (pure).

One definition for who calibrates a threshold and who acts on it, in less than 0.1 ms. A training
set is a table of how many of its prompts have each run of bytes, by hash: of one size however
many prompts there are, and without their words.
"""

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capture.errors import ConfigError

VERSION = 1  # of the file: what a run is, how it is hashed
RUN_BYTES = 6  # a short word, or two letters of a script that takes three bytes each
BITS = 20  # of a hash
LAST_BYTES = 8192  # of a longer prompt: its newest words
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio

Buckets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Familiarity:
    """A training set.

    Attributes:
        num_prompts: In it.
        counts: Prompts that have a run of each hash; uint32, one per hash.
    """

    num_prompts: int
    counts: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Familiarity":
        """Count the runs of some prompts."""
        counts, num_prompts = np.zeros(2**BITS, np.uint32), 0
        for text in texts:
            counts[np.unique(_runs(text))] += 1
            num_prompts += 1
        return cls(num_prompts, counts)

    def distance(self, text: str) -> float:
        """Return how few of the prompts share a text's runs, in nats.

        The mean over its runs of ``-log((prompts that have it + 1) / (prompts + 1))``: 0 if all
        have every one, ``log(prompts + 1)`` if none has any, or the text is too short for one.

        Source:
            Spärck Jones 1972, "A statistical interpretation of term specificity".
        """
        having = self.counts[_runs(text)]
        most = float(np.log(self.num_prompts + 1))
        return max(0.0, most - float(np.log1p(having).mean())) if len(having) else most

    def save(self, path: Path) -> None:
        """Write a file; who reads it meanwhile reads the old one."""
        draft = path.with_name(f".{path.name}")
        with draft.open("wb") as file:
            parts = {"version": VERSION, "num_prompts": self.num_prompts, "counts": self.counts}
            np.savez_compressed(file, **parts)  # type: ignore[arg-type] # numbers are arrays to it
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Familiarity":
        """Read a file.

        Raises:
            ConfigError: If it is none of ours.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                version, num_prompts = int(file["version"]), int(file["num_prompts"])
                counts = file["counts"]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{path}: {error}; expected the file that `retort compare --cascade` writes"
            ) from error
        if version != VERSION:
            raise ConfigError(f"{path}: version {version}, expected {VERSION}; write it anew")
        return cls(num_prompts, counts)


def prompt_text(request: Mapping[str, Any]) -> str:
    """The words of a request of ``/v1/chat/completions`` or ``/v1/completions``."""
    messages, prompt = request.get("messages"), request.get("prompt")
    said = [each.get("content") for each in _list(messages) if isinstance(each, dict)]
    texts: list[object] = [prompt, *_list(prompt)]
    for content in said:
        texts += [content, *(part.get("text") for part in _list(content) if isinstance(part, dict))]
    return "\n".join(text for text in texts if isinstance(text, str))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _runs(text: str) -> Buckets:
    """Hash of every run of bytes, in order."""
    last = text[-LAST_BYTES:].encode(errors="replace")[-LAST_BYTES:]
    read = np.frombuffer(last, np.uint8).astype(np.uint64)
    num_runs = max(len(read) - RUN_BYTES + 1, 0)
    hashed = np.zeros(num_runs, np.uint64)
    for place in range(RUN_BYTES):
        hashed = (hashed ^ read[place : place + num_runs]) * MULTIPLIER
    buckets: Buckets = (hashed >> np.uint64(64 - BITS)).astype(np.int64)
    return buckets
