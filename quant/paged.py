"""Tensors whose memory is a file's: the system writes them out and reads them back as it needs.

So are the weights of a model folder, which transformers maps. What is made of them here goes into
files too, so that a model larger than memory can be quantized: what is held at once is what one
layer is being computed with.
"""

import ctypes
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.errors import CompressionError
from trainer.grid import Rounded
from trainer.precision import is_emulated
from trainer.student import open_stored

Keep = Callable[[Tensor], Tensor]  # puts a tensor where it is to be kept, and returns it from there


def in_memory(tensor: Tensor) -> Tensor:
    """Leave a tensor where it is."""
    return tensor


def keep_in(folder: Path) -> Keep:
    """Return what moves a tensor into a file of a folder; the file goes when the tensor does.

    The folder should be on a disk: a tmpfs is memory. ``CompressionError`` where it has no room.
    """
    return partial(_into_file, folder)


def keep_rounded(weight: Rounded, keep: Keep) -> Rounded:
    """Keep both parts of a rounded weight."""
    return Rounded(keep(weight.values_OI), keep(weight.scale_OG))


def open_paged(folder: Path, keep: Keep) -> PreTrainedModel:
    """Map a model's weights, as they are stored; widened where the CPU has no bfloat16.

    They must not be written to: each page that is becomes memory of this process.

    Raises:
        ModelError: If the folder holds no model.
    """
    return widen(open_stored(folder), keep)


def widen(model: PreTrainedModel, keep: Keep) -> PreTrainedModel:
    """As ``trainer.precision.in_fast_dtype``, a tensor at a time."""
    if is_emulated(model):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data = keep(tensor.data.float())
    return model


def _into_file(folder: Path, tensor: Tensor) -> Tensor:
    with NamedTemporaryFile(dir=folder, prefix=".tensor.") as file:
        try:  # or a write to a page that the disk has no room for would end the process
            os.posix_fallocate(file.fileno(), 0, max(tensor.nbytes, 1))
        except OSError as error:
            raise CompressionError(
                f"{folder}: no room for what is not held in memory ({error}), up to twice the "
                "model's size while a bundle is made"
            ) from error
        size, dtype = tensor.numel(), tensor.dtype
        kept = torch.from_file(file.name, shared=True, size=size, dtype=dtype)
    # Small objects that stay lie in the holes of large tensors that went, and glibc gives neither
    # those holes back by itself nor fits the next tensor of that size in.
    ctypes.CDLL(None).malloc_trim(0)
    return kept.view(tensor.shape).copy_(tensor)
