"""The tap for vLLM's V1 model runner.

In V1 our turn comes after grammar masks, ``allowed_token_ids`` and ``bad_words`` and before
penalties and temperature.

Shape suffixes: B rows of the batch, R recorded ones, V vocabulary.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from capture.choice import Choice
from capture.piece import Rows
from capture.recorder import Load
from capture.rows import Ints
from capture.search import Kept, search
from capture.tapping import (
    eos_ids,
    flags_of,
    open_recorder,
    read_settings,
    start_copy,
    stop_ids,
    tag_of,
)
from capture.topk import candidates

if TYPE_CHECKING:
    from vllm.config import VllmConfig

MAX_TAGS = 4096  # tags remembered before those of finished exchanges are forgotten


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rows of the batch are recorded; the same from step to step until a request moves.

    Attributes:
        num_rows: Rows of the batch.
        slot_R: Of the recorded ones.
        owner_R: Serial numbers of their choices.
        outputs: Their live token lists.
    """

    num_rows: int
    slot_R: npt.NDArray[np.int64]
    owner_R: npt.NDArray[np.int64]
    outputs: list[list[int]]


class V1Tap(LogitsProcessor):
    """Records tagged requests; rows of the batch are slots, each with the choice it holds."""

    def __init__(self, vllm_config: "VllmConfig") -> None:
        self._config = read_settings()
        self._recorder = open_recorder(self._config)
        self._random = np.random.default_rng()
        # Compiled, or loaded, before serving.
        self._search(torch.zeros(1, 2), np.zeros(1, np.int64))
        self._slots: dict[int, Choice] = {}
        self._layout: Layout | None = None
        self._tagged: dict[str, list[Choice]] = {}
        self._eos = eos_ids(vllm_config)

    def is_argmax_invariant(self) -> bool:
        """False, although we change nothing: invariant processors are skipped for greedy rows."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests into, out of and between the batch's slots."""
        if batch_update is None:
            return
        self._layout = None
        for index in batch_update.removed:
            self._vacate(index)
        for index, params, prompt_ids, output_ids in batch_update.added:
            self._vacate(index)
            tag = tag_of(params)
            if tag is not None:
                self._slots[index] = self._resume_or_begin(tag, params, prompt_ids, output_ids)
        for first, second, direction in batch_update.moved:
            moved = self._slots.pop(first, None)
            if direction is MoveDirectionality.SWAP:
                self._place(first, self._slots.pop(second, None))
            self._vacate(second)
            self._place(second, moved)

    def _place(self, index: int, choice: Choice | None) -> None:
        if choice is not None:
            self._slots[index] = choice

    def _vacate(self, index: int) -> None:
        left = self._slots.pop(index, None)
        if left is not None:
            left.is_scheduled = False

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Select the tagged rows' candidates and pass the logits on untouched."""
        if not self._slots:
            return logits
        layout = self._layout
        if layout is None or layout.num_rows != len(logits):
            layout = self._layout = self._lay_out(len(logits))
        if not layout.outputs:
            return logits
        position_R = np.fromiter(map(len, layout.outputs), np.int32, len(layout.outputs))
        if logits.is_cpu:
            # At once: later stages change the logits in place.
            rows = Rows(layout.owner_R, position_R, *self._search(logits, layout.slot_R))
            self._recorder.push(lambda: rows, rows.num_bytes)
        else:
            self._recorder.push(*self._select(logits, layout, position_R))
        return logits

    def _search(self, logits_BV: torch.Tensor, slot_R: npt.NDArray[np.int64]) -> Kept:
        """Find what is kept of some rows in host memory."""
        config = self._config
        num_rows, vocabulary = logits_BV.shape
        if logits_BV.stride(1) != 1:
            logits_BV = logits_BV.contiguous()
        stride = logits_BV.stride(0)
        scores = logits_BV.as_strided(((num_rows - 1) * stride + vocabulary,), (1,))
        draw_RD = self._random.random((len(slot_R), config.tail_draws))
        kept = search(scores.float().numpy(), stride * slot_R, vocabulary, config.limits, draw_RD)
        return Kept(*kept)

    def _select(
        self, logits_BV: torch.Tensor, layout: Layout, position_R: Ints
    ) -> tuple[Load, int]:
        """Have candidates selected and copied to the host behind the step's own work."""
        config = self._config
        rows_RV = logits_BV[torch.from_numpy(layout.slot_R).to(logits_BV.device)]
        top = candidates(rows_RV, config.limits, config.tail_draws)
        copy = start_copy(top)

        def load() -> Rows:
            return Rows.chosen(layout.owner_R, position_R, copy(), config.limits)

        return load, 8 * top.ids_RK.numel()

    def _lay_out(self, num_rows: int) -> Layout:
        slots = [slot for slot in sorted(self._slots) if slot < num_rows]
        owners = [self._slots[slot] for slot in slots]
        return Layout(
            num_rows,
            np.array(slots, np.int64),
            np.array([owner.serial for owner in owners], np.int64),
            [owner.output_ids for owner in owners],
        )

    def _resume_or_begin(
        self, tag: str, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> Choice:
        """Return the choice of a request; one that was preempted brings its own list back."""
        siblings = self._tagged.setdefault(tag, [])
        for known in siblings:
            if known.output_ids is output_ids:
                known.is_scheduled = True
                return known
        choice = Choice(
            exchange_id=tag,
            index=len(siblings),
            prompt_ids=prompt_ids or (),
            output_ids=output_ids,
            stop_ids=stop_ids(params, self._eos),
            max_tokens=params.max_tokens or 2**31,
            flags=flags_of(params),
            touched_at=time.monotonic(),
        )
        siblings.append(choice)
        self._recorder.begin(choice)
        if len(self._tagged) > MAX_TAGS:
            self._tagged = {
                tag: choices
                for tag, choices in self._tagged.items()
                if not all(choice.is_closed for choice in choices)
            }
        return choice
