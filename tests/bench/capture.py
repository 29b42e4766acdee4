"""What capture costs: one vLLM without it, one with the tap, and OpenAI ``logprobs`` beside them.

``make bench-capture`` writes ``bench/capture.json`` and prints the table. All arms take turns in
every round, each round in another order; a ratio is the median of the rounds' own ratios.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec
from capture.host import this_host
from tests.bench.load import Load, Measured
from tests.bench.models import GPU_SHAPE, LARGE_VOCABULARY, demo_teacher, large_vocabulary
from tests.bench.processor import cpu_seconds
from tests.bench.stages import stages

ARMS: Mapping[str, dict[str, Any]] = {
    "off": {},
    "tap": {},
    "logprobs20": {"logprobs": 20},
    "logprobs64": {"logprobs": 64},
}
ENGINE_ARGS = ("--max-model-len", "512", "--max-logprobs", "64", "--no-enable-prefix-caching")
CPU_ARGS = ("--enforce-eager", "--max-num-seqs", "64")
# Two engines on one GPU, with CUDA graphs; weights are random where they are made.
GPU_ARGS = (
    *("--load-format", "dummy", "--max-num-seqs", "256"),
    *("--gpu-memory-utilization", "0.4", "--kv-cache-memory-bytes", str(8 * 2**30)),
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and how many tokens each request of a round generates at which concurrency."""

    name: str
    folder: Path
    vocabulary: int
    tokens: Mapping[int, int]  # by concurrency
    requests: Mapping[int, int]
    args: tuple[str, ...] = CPU_ARGS


@dataclass(frozen=True, slots=True)
class Cell:
    """The rounds of one arm at one concurrency."""

    case: Case
    concurrency: int
    arm: str
    rounds: list[Measured]

    def row(self) -> dict[str, object]:
        """Medians over the rounds."""
        return {
            "model": self.case.name,
            "vocabulary": self.case.vocabulary,
            "concurrency": self.concurrency,
            "arm": self.arm,
            "tokens_per_second": _median(r.tokens_per_second for r in self.rounds),
            "itl_p50_ms": _median(r.gap_ms(50) for r in self.rounds),
            "itl_p99_ms": _median(r.gap_ms(99) for r in self.rounds),
            "engine_cpu_us_per_token": _median(r.cpu_us_per_token for r in self.rounds),
            "rounds": [round(r.tokens_per_second, 1) for r in self.rounds],
        }


def main() -> int:
    """Run all cases, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="where its teacher is")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["demo", "large"], help="one of the two models")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "capture.json"
    document: dict[str, object] = {}
    cells: list[Cell] = []
    breakdown: list[dict[str, object]] = []
    for case in cases(options):
        cells += measure(case, options.rounds)
        for batch in case.tokens if case.args == CPU_ARGS else ():
            costs = stages(case.vocabulary, batch, is_sharp=case.name == "demo")
            breakdown.append({"model": case.name, "concurrency": batch, **costs})
        document = {
            "rows": [cell.row() for cell in cells],
            "ratio": ratios(cells),
            "stages_us_per_token": breakdown,
        }
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    show(document)
    console.print(path)
    return 0


def cases(options: argparse.Namespace) -> list[Case]:
    """The models to measure, short enough for a quarter of an hour in all."""
    found = []
    if this_host() == "cuda":
        folder = large_vocabulary(options.out / "models" / "billion", GPU_SHAPE, has_weights=False)
        tokens, requests = {1: 256, 32: 256, 256: 128}, {1: 1, 32: 64, 256: 256}
        return [Case("gpu", folder, LARGE_VOCABULARY, tokens, requests, GPU_ARGS)]
    if options.only in (None, "demo"):
        teacher = demo_teacher(options.demo)
        vocabulary = json.loads((teacher / "config.json").read_text())["vocab_size"]
        tokens, requests = {1: 128, 16: 96, 64: 48}, {1: 2, 16: 48, 64: 128}
        found.append(Case("demo", teacher, vocabulary, tokens, requests))
    if options.only in (None, "large"):
        folder = large_vocabulary(options.out / "models" / "large")
        tokens, requests = {1: 16, 16: 16, 64: 6}, {1: 2, 16: 16, 64: 64}
        found.append(Case("large", folder, LARGE_VOCABULARY, tokens, requests))
    return found


def measure(case: Case, rounds: int) -> list[Cell]:
    """Run both engines of a case and let the arms take turns."""
    console.rule(f"[bold]{case.name}: vocabulary {case.vocabulary:,}", align="left")
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as home, ExitStack() as stack:
        capture = CaptureConfig(log=Path(home) / "log", spool=Path(home) / "spool")
        engines = {}
        for name, captured in (("tap", capture), ("off", None)):
            log = Path(home) / f"{name}.log"
            args = (*ENGINE_ARGS, *case.args)
            spec = EngineSpec(case.folder, "bench", log, args, ONE_THREAD, captured)
            engines[name] = stack.enter_context(Engine.start(spec))
        for engine in engines.values():
            engine.wait_ready()
        return asyncio.run(_take_turns(case, engines, rounds))


async def _take_turns(case: Case, engines: Mapping[str, Engine], rounds: int) -> list[Cell]:
    cells = [Cell(case, number, arm, []) for number in case.tokens for arm in ARMS]
    with Progress(
        TextColumn("{task.description:12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("rounds", total=(rounds + 1) * len(cells))
        for turn in range(rounds + 1):
            for cell in cells if turn % 2 else reversed(cells):
                engine = engines["tap" if cell.arm == "tap" else "off"]
                load = Load(
                    *(engine.url, case.vocabulary, case.tokens[cell.concurrency], ARMS[cell.arm]),
                    tagged=cell.arm == "tap",
                )
                before = cpu_seconds(engine)
                measured = await load.run(case.requests[cell.concurrency], cell.concurrency, turn)
                if turn:  # the first round warms up
                    used = cpu_seconds(engine) - before
                    cell.rounds.append(replace(measured, cpu_seconds=used))
                bar.advance(task)
    return cells


def ratios(cells: list[Cell]) -> dict[str, float]:
    """Tokens per second of each arm over those without capture, round by round.

    Beside them what the tap adds to the engine's processor time: that, other than the clock,
    hardly sees what else the machine does.
    """
    found: dict[str, dict[str, float]] = {arm: {} for arm in ARMS if arm != "off"}
    cpu: dict[str, float] = {}
    off = {(c.case.name, c.concurrency): c.rounds for c in cells if c.arm == "off"}
    for cell in cells:
        if cell.arm != "off":
            name = f"{cell.case.name}_{cell.concurrency}"
            pairs = list(zip(cell.rounds, off[cell.case.name, cell.concurrency], strict=True))
            found[cell.arm][name] = _median(
                with_arm.tokens_per_second / without.tokens_per_second
                for with_arm, without in pairs
            )
            cpu[f"cpu_{cell.arm}_{name}"] = _median(
                with_arm.cpu_us_per_token / without.cpu_us_per_token for with_arm, without in pairs
            )
    summary = {f"{arm}_median": _median(by_case.values()) for arm, by_case in found.items()}
    each = {f"tap_{case}": ratio for case, ratio in found["tap"].items()}
    return {"tap_min": min(found["tap"].values()), **summary, **each, **cpu}


def show(document: Mapping[str, Any]) -> None:
    """Print what was written."""
    columns = ("tokens/s", "ITL p50 ms", "ITL p99 ms", "engine CPU us/token")
    table = Table("model", "requests at a time", "arm", *columns)
    for row in document["rows"]:
        table.add_row(
            *(row["model"], str(row["concurrency"]), row["arm"]),
            *(f"{row['tokens_per_second']:,.0f}", f"{row['itl_p50_ms']:.2f}"),
            *(f"{row['itl_p99_ms']:.2f}", f"{row['engine_cpu_us_per_token']:,.0f}"),
        )
    out = Console(file=sys.stdout)
    out.print(table)
    if breakdown := document["stages_us_per_token"]:
        cost = Table(*breakdown[0], title="where the tap's time goes, microseconds per token")
        for row in breakdown:
            cost.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
        out.print(cost)
    out.print({name: round(value, 3) for name, value in document["ratio"].items()})


def _median(values: Any) -> float:
    return float(statistics.median(values))


if __name__ == "__main__":
    sys.exit(main())
