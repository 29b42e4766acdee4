import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quant.errors import CompressionError
from quant.packed import write_packed
from quant.paged import in_memory
from tests.support.tiny_model import make_tiny_model


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file of this process becomes larger: a disk that is full, as a writer sees it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    source, folder = make_tiny_model(tmp_path / "model"), tmp_path / "bundle"
    folder.mkdir()

    with (
        room_for(100_000),
        pytest.raises(CompressionError, match=r"model\.safetensors: cannot be .* make room"),
    ):
        write_packed(source, folder, {}, [], {}, in_memory)
