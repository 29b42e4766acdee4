"""The tap for vLLM's V1 model runner.

In V1 our turn comes after grammar masks, ``allowed_token_ids`` and ``bad_words`` and before
penalties and temperature.

Shape suffixes: R recorded rows of a step, V vocabulary, K candidates.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from capture.choice import Choice
from capture.piece import Rows
from capture.tapping import (
    eos_ids,
    flags_of,
    open_recorder,
    read_settings,
    start_copy,
    stop_ids,
    tag_of,
)
from capture.topk import Candidates, candidates

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# On a CPU, logits of small vocabularies are copied and searched later, many steps at once: a call
# into torch costs more than such a search. Those of large ones are not worth the copy.
DEFERRED_VOCABULARY = 16_384
MAX_TAGS = 4096  # tags remembered before those of finished exchanges are forgotten


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rows of the batch are recorded; the same from step to step until a request moves.

    Attributes:
        num_rows: Rows of the batch.
        slots: Of the recorded ones; None if it is all of them.
        owner_R: Serial numbers of their choices.
        outputs: Their live token lists.
    """

    num_rows: int
    slots: list[int] | None
    owner_R: npt.NDArray[np.int64]
    outputs: list[list[int]]


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step's recorded rows.

    Attributes:
        owner_R: Serial numbers of the rows' choices.
        positions: Which of their tokens the rows are for.
        rows_RV: Logits, of which the candidates are still to be selected, or
        copy: Waits for the candidates.
    """

    owner_R: npt.NDArray[np.int64]
    positions: list[int]
    rows_RV: torch.Tensor | None
    copy: Callable[[], list[npt.NDArray[Any]]] | None


class V1Tap(LogitsProcessor):
    """Records tagged requests; rows of the batch are slots, each with the choice it holds."""

    def __init__(self, vllm_config: "VllmConfig") -> None:
        self._config = read_settings()
        self._recorder = open_recorder(self._config, self._gather)
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
        owner_R, positions = layout.owner_R, list(map(len, layout.outputs))
        if logits.is_cpu and logits.shape[1] <= DEFERRED_VOCABULARY:
            # Later stages change the logits in place.
            rows_RV = logits.clone() if layout.slots is None else logits[layout.slots]
            self._recorder.push(Step(owner_R, positions, rows_RV, None), rows_RV.nbytes)
        else:
            rows_RV = logits if layout.slots is None else logits[layout.slots]
            copy = start_copy(self._select(rows_RV))
            num_bytes = 8 * len(positions) * self._config.k_max
            self._recorder.push(Step(owner_R, positions, None, copy), num_bytes)
        return logits

    def _select(self, rows_RV: torch.Tensor) -> Candidates:
        config = self._config
        return candidates(rows_RV, k_min=config.k_min, k_max=config.k_max, mass=config.mass)

    def _gather(self, steps: Sequence[Step]) -> Rows:
        """Make rows of steps, in the tap's thread; deferred selections are made at once."""
        made = [
            Rows(step.owner_R, np.array(step.positions, np.int32), *step.copy())
            for step in steps
            if step.copy
        ]
        deferred = [(step, step.rows_RV) for step in steps if step.rows_RV is not None]
        if deferred:
            owner_R = np.concatenate([step.owner_R for step, _ in deferred])
            positions = [position for step, _ in deferred for position in step.positions]
            top = self._select(torch.cat([rows_RV for _, rows_RV in deferred]))
            made.append(Rows(owner_R, np.array(positions, np.int32), *start_copy(top)()))
        return Rows.joined(made)

    def _lay_out(self, num_rows: int) -> Layout:
        slots = [slot for slot in sorted(self._slots) if slot < num_rows]
        owners = [self._slots[slot] for slot in slots]
        return Layout(
            num_rows,
            None if len(slots) == num_rows else slots,
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
