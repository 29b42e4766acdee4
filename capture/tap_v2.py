"""The tap for vLLM's V2 model runner.

V2 calls us after bias, penalties, bad words and grammar and before temperature. It tells when a
request enters a slot, never when it leaves, and keeps tokens on the device. So the tokens of a
choice are read when its slot is missing from a step, is taken by another request, or has been
quiet for a moment, and tell whether the choice has ended.

With speculative decoding a request has a row for every draft token. Rows of rejected drafts need
no care: the positions they stand for come again in the next step, or lie behind the last token.

Shape suffixes: B requests and R rows of a step, V vocabulary, S slots, M longest sequence.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from vllm import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcessor,
    LogitsProcRequestState,
)

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
from capture.topk import candidates

if TYPE_CHECKING:
    from vllm.config import VllmConfig

MAX_TAGS = 4096  # tags whose choices are remembered, the latest


@dataclass(frozen=True, slots=True)
class Slots:
    """What each slot holds; replaced, never changed, so that a step keeps what it saw.

    Attributes:
        owner_S: Serial number of the choice, -1 where nothing is recorded.
        prompt_length_S: Tokens of the prompt.
        prefill_length_S: Tokens fed at first: the prompt, and the output before a preemption.
    """

    owner_S: npt.NDArray[np.int64]
    prompt_length_S: npt.NDArray[np.int32]
    prefill_length_S: npt.NDArray[np.int32]

    def with_slot(self, slot: int, owner: int, prompt_length: int, prefill_length: int) -> "Slots":
        """Return a copy in which one slot holds something else."""
        changed = Slots(
            self.owner_S.copy(), self.prompt_length_S.copy(), self.prefill_length_S.copy()
        )
        changed.owner_S[slot] = owner
        changed.prompt_length_S[slot] = prompt_length
        changed.prefill_length_S[slot] = prefill_length
        return changed


class V2Tap(LogitsProcessor):
    """Records tagged requests by their slots."""

    def __init__(self, vllm_config: "VllmConfig", req_states: LogitsProcRequestState) -> None:
        self._states = req_states
        self._config = read_settings()
        self._recorder = open_recorder(self._config)
        self._eos = eos_ids(vllm_config)
        size = req_states.max_num_reqs
        none = np.zeros(size, np.int32)
        self._slots = Slots(np.full(size, -1, np.int64), none, none)
        self._choices: dict[int, Choice] = {}  # by slot
        self._was_scheduled_S = np.zeros(size, bool)
        self._is_unsampled_S = np.zeros(size, bool)
        self._tagged: dict[str, list[Choice]] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Note what a slot holds from now on; True where something is recorded."""
        self._look_at(req_idx)
        self._choices.pop(req_idx, None)
        self._was_scheduled_S[req_idx] = False
        tag = tag_of(sampling_params)
        self._is_unsampled_S[req_idx] = tag is not None
        if tag is None:
            self._slots = self._slots.with_slot(req_idx, -1, 0, 0)
            return False
        prompt_length = int(self._states.prompt_len.np[req_idx])
        prefill_length = int(self._states.prefill_len.np[req_idx])
        choice = self._begin(tag, sampling_params, prefill_length - prompt_length)
        choice.refresh = self._reader(req_idx, choice, prompt_length)
        self._choices[req_idx] = choice
        self._slots = self._slots.with_slot(req_idx, choice.serial, prompt_length, prefill_length)
        return True

    def _begin(self, tag: str, params: SamplingParams, start: int) -> Choice:
        siblings = self._tagged.setdefault(tag, [])
        # One that was preempted before its first token comes back looking like a sibling.
        gone = next((c for c in siblings if not c.is_scheduled and not c.has_sampled), None)
        if gone is not None:
            siblings.remove(gone)
        choice = Choice(
            exchange_id=tag,
            index=len(siblings) if gone is None else gone.index,
            prompt_ids=(),
            output_ids=[],
            stop_ids=stop_ids(params, self._eos),
            max_tokens=params.max_tokens or 2**31,
            flags=flags_of(params),
            touched_at=time.monotonic(),
            start=start,
        )
        self._recorder.begin(choice)
        if not start:  # the rest of a choice takes the place of what it continues
            siblings.append(choice)
        while len(self._tagged) > MAX_TAGS:
            del self._tagged[next(iter(self._tagged))]
        return choice

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Select the rows' candidates and pass the logits on untouched."""
        slots = self._slots
        is_scheduled_S = np.zeros_like(self._was_scheduled_S)
        is_scheduled_S[ctx.idx_mapping_np] = True
        for slot in np.flatnonzero(self._was_scheduled_S & ~is_scheduled_S & (slots.owner_S >= 0)):
            self._look_at(int(slot))
        self._was_scheduled_S = is_scheduled_S
        if not (slots.owner_S[ctx.idx_mapping_np] >= 0).any():
            return logits
        self._note_sampled(ctx)
        config = self._config
        top = candidates(logits, config.limits, config.tail_draws)
        copy = start_copy([*top, ctx.expanded_idx_mapping.clone(), ctx.pos.clone()])

        def load() -> Rows:
            *top, slot_R, place_R = copy()
            owner_R = slots.owner_S[slot_R]
            # A prompt, or one fed again, that is not through yet makes rows too.
            is_kept_R = (owner_R >= 0) & (place_R >= slots.prefill_length_S[slot_R] - 1)
            position_R = (place_R + 1 - slots.prompt_length_S[slot_R]).astype(np.int32)
            owner_R, position_R, *kept = (part[is_kept_R] for part in (owner_R, position_R, *top))
            return Rows.chosen(owner_R, position_R, kept, config.limits)

        self._recorder.push(load, num_bytes=8 * top.ids_RK.numel())
        return logits

    def _note_sampled(self, ctx: LogitsContext) -> None:
        """Mark choices that get their first token in this step, before another request comes."""
        slot_B = ctx.idx_mapping_np
        # The bounds go on behind the batch where a captured graph pads it.
        length_B = ctx.seq_lens_upper_bound_np[: len(slot_B)]
        is_through_B = length_B >= self._slots.prefill_length_S[slot_B]
        for slot in slot_B[is_through_B & self._is_unsampled_S[slot_B]]:
            self._is_unsampled_S[slot] = False
            self._choices[int(slot)].has_sampled = True

    def _look_at(self, slot: int) -> None:
        """Read the tokens of a slot that is not scheduled now, before others take their place."""
        choice = self._choices.get(slot)
        if choice is None or choice.is_closed:
            return
        prompt_length = int(self._slots.prompt_length_S[slot])
        copy = start_copy(self._tokens(slot))

        choice.is_scheduled = False

        def take() -> None:
            if not choice.is_closed:
                _give_tokens(choice, prompt_length, *copy())

        self._recorder.call(take)

    def _reader(self, slot: int, choice: Choice, prompt_length: int) -> Callable[[], None]:
        """What reads the tokens of a choice when the engine seems to stand still."""

        def read() -> None:
            if choice.serial == self._slots.owner_S[slot]:
                _give_tokens(choice, prompt_length, *start_copy(self._tokens(slot))())

        return read

    def _tokens(self, slot: int) -> list[torch.Tensor]:
        """A copy, on the device, of a slot's sequence and its length."""
        states = self._states
        return [states.all_token_ids.gpu[slot].clone(), states.total_len.gpu[slot].clone()]


def _give_tokens(
    choice: Choice,
    prompt_length: int,
    sequence_M: npt.NDArray[np.int32],
    length: npt.NDArray[np.int32],
) -> None:
    """Tell a choice its tokens; the device may have gone on behind the one that ended it."""
    output = sequence_M[prompt_length : int(length)][: choice.max_tokens]
    stops = np.flatnonzero(np.isin(output, list(choice.stop_ids)))
    choice.prompt_ids = sequence_M[:prompt_length].tolist()
    choice.output_ids = output[: stops[0] + 1 if len(stops) else None].tolist()
