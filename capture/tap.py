"""The tap: a vLLM logits processor that records each tagged position's top k and changes nothing.

Loaded with ``--logits-processors capture.tap:LogitTap``; ``RETORT_SPOOL`` names the folder for
segments, ``RETORT_TAP`` holds ``TapConfig`` as JSON. A request is recorded when its
``vllm_xargs`` hold ``{"retort": "<exchange id>"}``.

This is the adapter to the V1 model runner's interface; ``capture.recorder`` behind it knows no
vLLM. In V1 our turn comes after grammar masks, ``allowed_token_ids`` and ``bad_words`` and
before penalties and temperature, hence the flags.
"""

import atexit
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from capture.choice import Choice, Step, TapConfig
from capture.errors import ConfigError
from capture.recorder import Recorded, Recorder
from capture.rows import encode_logits
from capture.schema import Flag
from capture.topk import TopK, select
from capture.writer import Spool, SpoolLimits

if TYPE_CHECKING:
    from vllm.config import VllmConfig

TAG = "retort"
MAX_TAGS = 4096  # tags remembered before those of finished exchanges are forgotten


class LogitTap(LogitsProcessor):
    """Records tagged requests; rows of the batch are slots, each with the choice it holds."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        device: torch.device,  # noqa: ARG002  the interface's signature
        is_pin_memory: bool,  # noqa: ARG002, FBT001  the interface's signature
    ) -> None:
        self._config = read_settings()
        self._recorder = open_recorder(self._config)
        self._slots: dict[int, Choice] = {}
        self._tagged: dict[str, list[Choice]] = {}
        self._eos = eos_ids(vllm_config)

    def is_argmax_invariant(self) -> bool:
        """False, although we change nothing: invariant processors are skipped for greedy rows."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests into, out of and between the batch's slots."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._vacate(index)
        for index, params, prompt_ids, output_ids in batch_update.added:
            self._vacate(index)
            tag = (params.extra_args or {}).get(TAG)
            if tag is not None:
                self._slots[index] = self._resume_or_begin(str(tag), params, prompt_ids, output_ids)
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
        """Select the tagged rows' top k and pass the logits on untouched."""
        slots = [slot for slot in sorted(self._slots) if slot < logits.shape[0]]
        if slots:
            owners = [self._slots[slot] for slot in slots]
            rows_RV = logits if len(slots) == logits.shape[0] else logits[slots]
            config = self._config
            top = select(rows_RV, k_min=config.k_min, k_max=config.k_max, mass=config.mass)
            positions = [len(owner.output_ids) for owner in owners]
            self._recorder.push(Recorded(lambda: to_host(top), owners, positions))
        return logits

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


def read_settings() -> TapConfig:
    """Read the tap's settings from the environment.

    Raises:
        ConfigError: If ``RETORT_SPOOL`` or ``RETORT_TAP`` is missing.
    """
    spool, settings = os.environ.get("RETORT_SPOOL"), os.environ.get("RETORT_TAP")
    if not spool or not settings:
        raise ConfigError(
            "the tap needs RETORT_SPOOL (a folder) and RETORT_TAP (JSON with model_revision and "
            "tokenizer_hash); `retort serve` sets both"
        )
    return TapConfig(**{**json.loads(settings), "spool": Path(spool)})


def open_recorder(config: TapConfig) -> Recorder:
    """Open the spool and the thread that writes to it; both are closed when the engine exits."""
    limits = SpoolLimits(
        sync_seconds=config.sync_seconds,
        segment_bytes=config.segment_bytes,
        segment_seconds=config.segment_seconds,
    )
    recorder = Recorder(Spool(config.spool, "logits", encode_logits, limits=limits), config)
    atexit.register(recorder.close)
    return recorder


def to_host(top: TopK) -> Step:
    """Copy one step's selection to host memory."""
    ids, logprobs, size, tail = (tensor.cpu().numpy() for tensor in top)
    return Step(ids, logprobs, size, tail)


def eos_ids(vllm_config: "VllmConfig") -> frozenset[int]:
    """The model's end-of-sequence tokens, from its generation config or its config."""
    generation = vllm_config.model_config.try_get_generation_config()
    eos = generation.get("eos_token_id", vllm_config.model_config.hf_config.eos_token_id)
    return frozenset([eos] if isinstance(eos, int) else eos or ())


def stop_ids(params: SamplingParams, eos: frozenset[int]) -> frozenset[int]:
    """Tokens that end this request."""
    own = frozenset(params.stop_token_ids or ())
    return own if params.ignore_eos else own | eos


def flags_of(params: SamplingParams) -> Flag:
    """What this request does to the logits beside sampling from them."""
    flags = Flag(0)
    masked = (params.structured_outputs, params.allowed_token_ids, params.bad_words)
    if any(masked) or params.min_tokens:
        flags |= Flag.MASKED
    penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty - 1.0)
    if params.logit_bias or any(penalties):
        flags |= Flag.BIASED
    return flags
