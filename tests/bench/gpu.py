"""What projection and loss take on a GPU, and the tap's search beside an ``argmax``.

``python -m tests.bench.gpu`` writes ``bench/gpu.json`` and prints two tables: medians of seven
(the tap's: thirty) repetitions after two that warm up. Liger's kernel is measured where
``liger-kernel`` is installed; it knows the cross-entropy of the words only.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from capture.adaptive import Limits
from capture.topk import candidates
from trainer import fused as fused_module
from trainer.fused import fused_loss
from trainer.losses import LOSSES, Targets
from trainer.student_view import look

GPU = "cuda"
VOCABULARIES = (32_000, 151_936)
TOKENS, WIDTH, K = 8192, 2048, 16
CHUNKS = (128, 512, 2048)  # positions at a time
BATCHES = (1, 32, 256)  # requests in one step of an engine
LIMITS = Limits(2, 64, 0.995)
Pass = Callable[[], object]


def main() -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        Console(stderr=True).print("torch finds no GPU here")
        return 2
    rows = [row for vocabulary in VOCABULARIES for row in losses(vocabulary)]
    steps = [step(vocabulary, batch) for vocabulary in VOCABULARIES for batch in BATCHES]
    content = {"device": torch.cuda.get_device_name(), "loss": rows, "tap": steps}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gpu.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    out = Console(file=sys.stdout, width=160)
    for found in (rows, steps):
        table = Table(*found[0])
        for row in found:
            table.add_row(*(f"{v:,.1f}" if isinstance(v, float) else str(v) for v in row.values()))
        out.print(table)
    return 0


def losses(vocabulary: int) -> list[dict[str, Any]]:
    """Milliseconds and peak memory of one pass there and back, each way."""
    random = torch.Generator(GPU).manual_seed(0)
    here: dict[str, Any] = {"generator": random, "device": GPU}
    hidden = torch.randn(TOKENS, WIDTH, **here).requires_grad_()
    weight = (torch.randn(vocabulary, WIDTH, **here) / WIDTH**0.5).requires_grad_()
    ids = torch.randint(vocabulary, (TOKENS, K), **here)
    logprobs = torch.randn(TOKENS, K + 1, **here).log_softmax(-1)
    labels = torch.randint(vocabulary, (TOKENS,), **here)
    targets = Targets(labels, ids, logprobs[:, :K], logprobs[:, K])
    rows = []
    for name, forward in ways(hidden, weight, targets).items():

        def there_and_back(forward: Callable[[], torch.Tensor] = forward) -> None:
            hidden.grad = weight.grad = None
            torch.autograd.backward(forward())

        peak = peak_mb(there_and_back)
        row = {"vocabulary": vocabulary, "way": name, "ms": timed(there_and_back, 7)}
        rows.append({**row, "peak_mb": peak})
    return rows


def ways(
    hidden: torch.Tensor, weight: torch.Tensor, targets: Targets
) -> Mapping[str, Callable[[], torch.Tensor]]:
    """The same loss computed in several ways, in bfloat16 as the trainer does it."""
    share = torch.full((TOKENS,), 1 / TOKENS, device=GPU)

    def fused(loss: str, rows: int = CHUNKS[-1]) -> torch.Tensor:
        fused_module.GPU_CHUNK_ROWS = rows
        with torch.autocast(GPU, torch.bfloat16):
            return fused_loss(hidden, weight, targets, LOSSES[loss], share)

    def plain(loss: str) -> torch.Tensor:
        seen = look(scores(), targets.completion_ids_N, targets.topk_ids_NK)
        return LOSSES[loss](seen, targets).mean()

    def scores() -> torch.Tensor:
        with torch.autocast(GPU, torch.bfloat16):
            return (hidden @ weight.T).float()

    def cross_entropy() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(scores(), targets.completion_ids_N)

    found: dict[str, Callable[[], torch.Tensor]] = {
        f"forward_kl, fused, {rows}": partial(fused, "forward_kl", rows) for rows in CHUNKS
    }
    found |= {
        "forward_kl, plain": lambda: plain("forward_kl"),
        "cross-entropy, fused": lambda: fused("behaviour_cloning"),
        "cross-entropy, torch": cross_entropy,
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import (  # noqa: PLC0415 - where it is installed
            LigerFusedLinearCrossEntropyLoss,
        )

        kernel = LigerFusedLinearCrossEntropyLoss()
        found["cross-entropy, Liger"] = lambda: kernel(
            weight.bfloat16(), hidden.bfloat16(), targets.completion_ids_N
        )
    return found


def step(vocabulary: int, batch: int) -> dict[str, Any]:
    """Microseconds of the tap's search in one step of an engine, and of greedy sampling's."""
    scores = 3 * torch.randn(batch, vocabulary, device=GPU)
    passes: dict[str, Pass] = {
        "argmax_us": lambda: scores.argmax(-1),
        "log_softmax_us": lambda: scores.log_softmax(-1),
        "topk_us": lambda: scores.topk(LIMITS.k_max),
        "candidates_us": lambda: candidates(scores, LIMITS),
        "candidates_and_draws_us": lambda: candidates(scores, LIMITS, 4),
    }
    times = {name: 1000 * timed(once, 30) for name, once in passes.items()}
    return {"vocabulary": vocabulary, "batch": batch, **times}


def timed(once: Pass, times: int) -> float:
    """Median milliseconds on the GPU."""
    for _ in range(2):
        once()
    found = []
    for _ in range(times):
        began, ended = (_event() for _ in range(2))
        began.record()
        once()
        ended.record()
        torch.cuda.synchronize()
        found.append(float(began.elapsed_time(ended)))
    return statistics.median(found)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def peak_mb(once: Pass) -> float:
    """The most memory in use during a pass, beyond what was before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


if __name__ == "__main__":
    sys.exit(main())
