"""What both adapters of the tap share: settings, the recorder, and what requests do to logits."""

import gc
import json
import os
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from vllm import SamplingParams

from capture.choice import TapConfig
from capture.errors import ConfigError
from capture.recorder import Recorder
from capture.rows import encode_logits
from capture.schema import Flag
from capture.writer import Spool, SpoolLimits

if TYPE_CHECKING:
    from vllm.config import VllmConfig

TAG = "retort"


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


def is_recording(vllm_config: "VllmConfig") -> bool:
    """Whether this is the one process of its engine that records: that whose tokens vLLM takes.

    Every process of a tensor parallel group computes every row; each would write it.

    Raises:
        ConfigError: If no process of the engine sees every row.
    """
    parallel = vllm_config.parallel_config
    if parallel.enable_batch_sharded_sampling:
        raise ConfigError(
            "the tap cannot record where each process samples a part of the batch; serve without "
            "--enable-batch-sharded-sampling, or without capture"
        )
    stage = parallel.tensor_parallel_size * parallel.prefill_context_parallel_size
    num_processes = stage * parallel.pipeline_parallel_size
    return bool(parallel.rank % num_processes == num_processes - stage)


def open_recorder(config: TapConfig) -> Recorder:
    """Open the spool and the thread that writes to it; both are closed when the engine exits."""
    limits = SpoolLimits(
        sync_seconds=config.sync_seconds,
        segment_bytes=config.segment_bytes,
        segment_seconds=config.segment_seconds,
    )
    spool = Spool(config.spool, "logits", encode_logits, limits=limits)
    recorder = Recorder(spool, config)
    # Workers are multiprocessing children: `atexit` alone would not reach them.
    Finalize(None, recorder.close, exitpriority=100)
    # After it, the interpreter would look through millions of objects before it lets go of them.
    Finalize(None, gc.freeze, exitpriority=0)
    return recorder


def start_copy(tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
    """Begin to copy tensors to host memory; the returned call waits for them.

    On a GPU the copies run behind the step's own work and nobody waits for them here. On a CPU
    the arrays are views: pass tensors that nobody changes.
    """
    if tensors[0].is_cpu:
        return lambda: [tensor.numpy() for tensor in tensors]
    targets = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for target, tensor in zip(targets, tensors, strict=True):
        target.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> list[npt.NDArray[Any]]:
        copied.synchronize()
        return [target.numpy() for target in targets]

    return wait


def eos_ids(vllm_config: "VllmConfig") -> frozenset[int]:
    """The model's end-of-sequence tokens, from its generation config or its config.

    A model of several modalities may name them in the config of its text alone, or nowhere.
    """
    model = vllm_config.model_config
    generation, configs = model.try_get_generation_config(), (model.hf_config, model.hf_text_config)
    told = (getattr(config, "eos_token_id", None) for config in configs)
    eos = generation.get("eos_token_id", next((ids for ids in told if ids is not None), None))
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


def tag_of(params: SamplingParams) -> str | None:
    """The exchange a request is recorded for, None if it is not to be."""
    tag = (params.extra_args or {}).get(TAG)
    return None if tag is None else str(tag)
