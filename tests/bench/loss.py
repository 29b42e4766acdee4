"""What projection and loss take: fused, a chunk at a time, beside the plain way over all scores.

``make bench-loss`` writes ``bench/loss.json`` and prints the table. Each measurement is a process
of its own, so that its peak of memory is its own; the two ways take turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from trainer.fused import fused_loss
from trainer.losses import LOSSES, Targets
from trainer.student_view import look

SHAPES = {32_000: (2048, 512), 151_936: (1024, 512)}  # vocabulary: completion tokens, width
K = 16
LOSS = "forward_kl"
WAYS = ("fused", "plain")
console = Console(stderr=True)


def main() -> int:
    """Measure, write the JSON, print the table; or make one measurement for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "VOCABULARY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        way, vocabulary = options.one
        sys.stdout.write(json.dumps(measure(way, int(vocabulary))))
        return 0
    turns = [
        (turn, vocabulary, way)
        for turn in range(options.rounds)
        for vocabulary in SHAPES
        for way in (WAYS if turn % 2 else reversed(WAYS))
    ]
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _, vocabulary, way in track(turns, "measuring", console=console):
        found.setdefault((vocabulary, way), []).append(in_process(way, vocabulary))
    rows = [row_of(v, found[v, "fused"], found[v, "plain"]) for v in SHAPES]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "loss.json"
    path.write_text(json.dumps({"loss": LOSS, "k": K, "rows": rows}, indent=2) + "\n")
    show(rows)
    console.print(path)
    return 0


def in_process(way: str, vocabulary: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.loss", "--one", way, str(vocabulary)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(way: str, vocabulary: int) -> dict[str, float]:
    """Seconds of one pass there and back, and the memory it needs beyond its inputs, in MB."""
    torch.set_num_threads(1)
    tokens, width = SHAPES[vocabulary]
    hidden, weight, targets = inputs(tokens, width, vocabulary)
    once(way, hidden, weight, targets)  # what is loaded and compiled at first use is not counted
    hidden.grad = weight.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    began = time.perf_counter()
    once(way, hidden, weight, targets)
    return {"seconds": time.perf_counter() - began, "peak_mb": (status("VmHWM") - before) / 1024}


def inputs(tokens: int, width: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """Random states and projection, and a teacher's likeliest entries."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=random).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=random) / width**0.5).requires_grad_()
    ids = torch.randint(vocabulary, (tokens, K), generator=random)
    logprobs = torch.randn(tokens, K + 1, generator=random).log_softmax(-1)
    labels = torch.randint(vocabulary, (tokens,), generator=random)
    return hidden, weight, Targets(labels, ids, logprobs[:, :K], logprobs[:, K])


def once(way: str, hidden: torch.Tensor, weight: torch.Tensor, targets: Targets) -> None:
    """There and back."""
    if way == "fused":
        share = hidden.new_full((len(hidden),), 1 / len(hidden))
        loss = fused_loss(hidden, weight, targets, LOSSES[LOSS], share)
    else:
        seen = look(hidden @ weight.T, targets.completion_ids_N, targets.topk_ids_NK)
        loss = LOSSES[LOSS](seen, targets).mean()
    torch.autograd.backward(loss)


def status(name: str) -> int:
    """A figure of this process's memory, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def row_of(
    vocabulary: int, ours: list[dict[str, float]], plain: list[dict[str, float]]
) -> dict[str, Any]:
    """One vocabulary: medians, and the medians of the rounds' ratios."""
    tokens, width = SHAPES[vocabulary]
    row: dict[str, Any] = {"vocabulary": vocabulary, "tokens": tokens, "width": width}
    for figure in ("peak_mb", "seconds"):
        pairs = [(a[figure], b[figure]) for a, b in zip(ours, plain, strict=True)]
        row[f"fused_{figure}"] = statistics.median(a for a, _ in pairs)
        row[f"plain_{figure}"] = statistics.median(b for _, b in pairs)
        name = "peak_ratio" if figure == "peak_mb" else "time_ratio"
        row[name] = statistics.median(a / b for a, b in pairs)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Print what was written."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(
            *(f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values())
        )
    Console(file=sys.stdout, width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
