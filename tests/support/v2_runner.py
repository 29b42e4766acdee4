"""What vLLM's V2 model runner does to a logits processor, on CPU tensors and without a model.

The next token's logits are a function of the sequence so far, so a test can compute them again.
The steps follow the interface's documentation: slots come from a free list and are announced by
``add_request``; their tokens are on the "device" before ``apply``; a row is a logits row, several
of a request with drafts; nothing tells that a request has left.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcessor,
    LogitsProcRequestState,
)

VOCABULARY = 50
EOS = 3
CHUNK = 4  # prompt tokens a step feeds at most


def logits_after(sequence: Sequence[int]) -> torch.Tensor:
    """Scores of the next token."""
    seed = hash(tuple(sequence)) & 0x7FFFFFFF
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def config(rank: int = 0, **parallel: object) -> SimpleNamespace:
    """The part of ``VllmConfig`` that the tap reads, in one of an engine's processes."""
    sizes = ("tensor_parallel_size", "prefill_context_parallel_size", "pipeline_parallel_size")
    alone = {**dict.fromkeys(sizes, 1), "enable_batch_sharded_sampling": False}
    hf_config = SimpleNamespace(eos_token_id=EOS)
    return SimpleNamespace(
        parallel_config=SimpleNamespace(rank=rank, **{**alone, **parallel}),
        model_config=SimpleNamespace(
            hf_config=hf_config,
            hf_text_config=hf_config,
            try_get_generation_config=lambda: {"eos_token_id": EOS},
        ),
    )


def _device_ints(*shape: int) -> Any:
    return SimpleNamespace(gpu=torch.zeros(*shape, dtype=torch.int32))


def _host_ints(size: int) -> Any:
    return SimpleNamespace(np=np.zeros(size, np.int32))


@dataclass
class Request:
    params: SamplingParams
    prompt: list[int]
    output: list[int] = field(default_factory=list)
    slot: int | None = None
    fed: int = 0
    is_finished: bool = False

    @property
    def sequence(self) -> list[int]:
        return self.prompt + self.output


class V2Runner:
    """Schedules requests on few slots; ``step`` until ``is_done``."""

    def __init__(self, num_slots: int, max_length: int, seed: int, *, drafts: int = 0) -> None:
        self.states = LogitsProcRequestState(
            device=torch.device("cpu"),
            max_num_reqs=num_slots,
            vocab_size=VOCABULARY,
            all_token_ids=_device_ints(num_slots, max_length),
            prompt_len=_host_ints(num_slots),
            prefill_len=_host_ints(num_slots),
            total_len=_device_ints(num_slots),
        )
        self._random = random.Random(seed)
        self._drafts = drafts
        self._free = list(range(num_slots))
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    @property
    def is_done(self) -> bool:
        return not self.waiting and not self.running

    def step(self, processor: LogitsProcessor) -> None:
        """Admit, feed, sample."""
        staged = [self._admit(processor) for _ in range(min(len(self._free), len(self.waiting)))]
        for request in staged:  # the flush to the device, after every ``add_request``
            assert request.slot is not None
            sequence = torch.tensor(request.sequence, dtype=torch.int32)
            self.states.all_token_ids.gpu[request.slot, : len(sequence)] = sequence
            self.states.total_len.gpu[request.slot] = len(sequence)
        processor.apply_staged_writes()
        scheduled = [request for request in self.running if self._random.random() < 0.8]
        if scheduled:
            self._run(processor, scheduled)
        for request in [r for r in self.running if r.is_finished]:
            self._leave(request)
        if self.running and self._random.random() < 0.1:
            preempted = self._random.choice(self.running)
            self._leave(preempted)
            preempted.fed = 0
            self.waiting.append(preempted)

    def _admit(self, processor: LogitsProcessor) -> Request:
        request = self.waiting.pop(0)
        request.slot = self._free.pop()
        self.states.prompt_len.np[request.slot] = len(request.prompt)
        self.states.prefill_len.np[request.slot] = len(request.sequence)
        processor.add_request(request.slot, request.params)
        self.running.append(request)
        return request

    def _leave(self, request: Request) -> None:
        assert request.slot is not None
        self.running.remove(request)
        self._free.append(request.slot)
        request.slot = None

    def _run(self, processor: LogitsProcessor, scheduled: list[Request]) -> None:
        self._random.shuffle(scheduled)
        rows: list[tuple[int, int, int, int]] = []  # slot, offset, input token, position
        logits, plans = [], []
        for request in scheduled:
            end = min(request.fed + CHUNK, len(request.sequence))
            is_prefilled = end == len(request.sequence)
            drafts = self._draft(request) if is_prefilled and request.output else []
            fed = [*request.sequence[:end], *drafts]
            for offset in range(len(drafts) + 1):
                place = end - 1 + offset
                assert request.slot is not None
                rows.append((request.slot, offset, fed[place], place))
                logits.append(logits_after(fed[: place + 1]))
            plans.append((request, end, is_prefilled, drafts))
        slots, offsets, tokens, places = (
            torch.tensor(column) for column in zip(*rows, strict=True)
        )
        batch = [request.slot for request in scheduled]
        made = torch.stack(logits)
        before = made.clone()
        processor.apply(
            made,
            LogitsContext(
                expanded_idx_mapping=slots,
                idx_mapping=torch.tensor(batch),
                idx_mapping_np=np.array(batch),
                expanded_local_pos=offsets,
                input_ids=tokens,
                pos=places,
                # Tokens fed when the step is through, drafts too; a captured graph pads the batch.
                seq_lens_upper_bound_np=np.array([end + len(d) for _, end, _, d in plans] + [0]),
            ),
        )
        assert torch.equal(made, before)
        for request, end, is_prefilled, drafts in plans:
            request.fed = end
            if is_prefilled:
                self._accept(request, drafts)

    def _draft(self, request: Request) -> list[int]:
        """Some right and some wrong guesses."""
        guessed: list[int] = []
        for _ in range(self._random.randint(0, self._drafts)):
            right = int(logits_after([*request.sequence, *guessed]).argmax())
            guessed.append(right if self._random.random() < 0.7 else self._random.randrange(4, 40))
        return guessed

    def _accept(self, request: Request, drafts: list[int]) -> None:
        """Greedy sampling with verification; the scheduler then cuts at the end of the request."""
        sampled: list[int] = []
        for draft in [*drafts, None]:
            sampled.append(int(logits_after([*request.sequence, *sampled]).argmax()))
            if sampled[-1] != draft:
                break
        assert request.slot is not None
        on_device = [*request.sequence, *sampled]
        tokens = torch.tensor(on_device, dtype=torch.int32)
        self.states.all_token_ids.gpu[request.slot, : len(tokens)] = tokens
        self.states.total_len.gpu[request.slot] = len(tokens)
        limit = request.params.max_tokens or 0
        for token in sampled:
            request.output.append(token)
            if token == EOS or len(request.output) == limit:
                request.is_finished = True
                break
