"""A model run block by block: all batches through one block before any goes on to the next.

Every weight is then read once for all batches, however little of the model fits into memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.errors import CompressionError
from quant.paged import Keep, in_memory, open_paged
from trainer.errors import ModelError
from trainer.scores import check_scores

Batch = TypeVar("Batch")
Result = TypeVar("Result")
Options = Mapping[str, Any]  # what a block takes besides the states, by name


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return a model's blocks, in the order in which it runs them.

    Raises:
        CompressionError: If it has no list of as many as its config says.
    """
    number = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return module
    raise CompressionError(f"the model has no list of {number} blocks; expected a decoder")


def places(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return the number of the block that each layer is in; of the output head, how many there are.

    Raises:
        CompressionError: If one is in none.
    """
    blocks = blocks_of(model)
    place_of = {module: n for n, block in enumerate(blocks) for module in block.modules()}
    place_of[model.get_output_embeddings()] = len(blocks)
    outside = [name for name, layer in layers.items() if layer not in place_of]
    if outside:
        raise CompressionError(
            f"{outside[0]} is in none of the model's blocks, and can only be rounded to the "
            "nearest: use --scheme int4-rtn or int8-weight"
        )
    return {name: place_of[layer] for name, layer in layers.items()}


def open_decoder(folder: Path, keep: Keep) -> PreTrainedModel:
    """As ``quant.paged.open_paged``, but refuse a model that would be measured wrongly.

    Raises:
        CompressionError: As ``check_decoder`` does.
        ModelError: If the folder holds no model.
    """
    model = open_paged(folder, keep)
    check_decoder(model)
    return model


def check_decoder(model: PreTrainedModel) -> None:
    """As ``trainer.scores.check_scores``, without running a block.

    Raises:
        CompressionError: If a model's scores are no product of its last states, or it has no
            blocks.
    """
    blocks = blocks_of(model)
    with _instead_of(blocks, [_Recorder() for _ in blocks]):
        try:
            check_scores(model)
        except ModelError as error:
            raise CompressionError(str(error)) from error


@dataclass(slots=True)
class Passage(Generic[Batch, Result]):
    """Batches on their way through a model.

    Attributes:
        blocks: Of the model; one may be changed until the batches reach it.
        run: What runs the model on a batch.
        batches: All of them.
        hidden: States of each batch where it is.
        options: What each block takes besides, by batch and block.
        place: The block before which they are.
        current: Number of the batch that a block is being run on; hooks read it.
    """

    blocks: nn.ModuleList
    run: Callable[[Batch], Result]
    batches: Sequence[Batch]
    hidden: list[Tensor]
    options: list[list[Options]]
    place: int = 0
    current: int = 0

    @classmethod
    @torch.inference_mode()
    def start(
        cls,
        model: PreTrainedModel,
        run: Callable[[Batch], Result],
        batches: Sequence[Batch],
        keep: Keep = in_memory,
    ) -> Self:
        """Bring all batches before the first block.

        Args:
            model: Its blocks take states, and options by name, and give states.
            run: Calls the model once with a batch.
            batches: To run.
            keep: Where states are kept.

        Raises:
            CompressionError: If the model has no blocks.
        """
        blocks = blocks_of(model)
        passage = cls(blocks, run, batches, [], [])
        for batch in batches:
            recorders = [_Recorder() for _ in blocks]
            with _instead_of(blocks, recorders):
                run(batch)
            passage.hidden.append(keep(recorders[0].hidden))
            passage.options.append([recorder.options for recorder in recorders])
        return passage

    @property
    def batch(self) -> Batch:
        """The one that a block is being run on."""
        return self.batches[self.current]

    @torch.inference_mode()
    def advance(self, place: int) -> None:
        """Bring all batches before another block, or behind the last."""
        for index in range(self.place, place):
            for number, hidden in enumerate(self.hidden):
                hidden.copy_(self.through(index, number, hidden))
        self.place = place

    @torch.inference_mode()
    def look(self, place: int) -> Iterator[Tensor]:
        """Run every batch on and give its states at another place; it stays where it is."""
        for number, start in enumerate(self.hidden):
            hidden = start
            for index in range(self.place, place):
                hidden = self.through(index, number, hidden)
            yield hidden

    def through(self, index: int, number: int, hidden: Tensor) -> Tensor:
        """Return what a block makes of states of a batch."""
        self.current = number
        states: Tensor = self.blocks[index](hidden, **self.options[number][index])
        return states

    @torch.inference_mode()
    def results(self) -> Iterator[Result]:
        """Bring each batch to the end, and return what running the model on it gives."""
        self.advance(len(self.blocks))
        for number, hidden in enumerate(self.hidden):
            yield self.finish(number, hidden)

    def finish(self, number: int, hidden: Tensor) -> Result:
        """Return what running the model on a batch gives, from its states behind the last block."""
        with _instead_of(self.blocks, [_Given(hidden) for _ in self.blocks]):
            return self.run(self.batches[number])


def block_by_block(
    model: PreTrainedModel, keep: Keep, run: Callable[[Batch], Result], batches: Sequence[Batch]
) -> Iterator[Result]:
    """Return what ``map(run, batches)`` returns, where ``run`` calls the model once."""
    return Passage.start(model, run, batches, keep).results()


class _Recorder(nn.Module):
    """Remembers what a block would have been given."""

    hidden: Tensor
    options: Options

    def forward(self, hidden: Tensor, **options: object) -> Tensor:
        self.hidden, self.options = hidden, options
        return hidden


class _Given(nn.Module):
    """Gives the states that are known already."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, _hidden: Tensor, **_options: object) -> Tensor:
        return self.hidden


@contextmanager
def _instead_of(blocks: nn.ModuleList, others: Sequence[nn.Module]) -> Iterator[None]:
    """Let a model call other modules than its blocks."""
    own = list(blocks)
    try:
        for index, other in enumerate(others):
            blocks[index] = other
        yield
    finally:
        for index, block in enumerate(own):
            blocks[index] = block
