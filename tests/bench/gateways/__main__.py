"""What pointing an app at a gateway costs: Retort, LiteLLM and Portkey before the same mock engine.

``bare`` is what the libraries of Retort's hot path cost with nothing of Retort's in between.

``make bench-gateway`` writes ``bench/gateway.json`` and prints the table. The mock and the load
share one core, all gateways another; every round measures each of them, in another order. The
last part asks a real vLLM straight and through Retort.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.bench.gateways.arms import PEERS, Arm, bare, mock_engine, retort
from tests.bench.gateways.load import Measured, percentile, run
from tests.bench.gateways.real import vllm_ratio

NUM_CONNECTIONS = 32
NUM_PACED = 200
NUM_FOR_MEMORY = 100_000
NUM_WARMING = 5_000
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is measured of every arm."""

    name: str
    connections: int
    seconds: float
    figures: Mapping[str, Callable[[Measured], float]]
    stream: bool = False
    paced: bool = False


PARTS = (
    Part("requests", NUM_CONNECTIONS, 3.0, {"requests_per_second": lambda m: m.per_second}),
    Part(
        "streams",
        NUM_CONNECTIONS,
        3.0,
        {"streams_per_second": lambda m: m.per_second},
        stream=True,
    ),
    Part(
        "one request",
        1,
        2.0,
        {
            "p50_ms_c1": lambda m: percentile(m.latency_ms, 50),
            "p99_ms_c1": lambda m: percentile(m.latency_ms, 99),
        },
    ),
    Part(
        "one stream",
        1,
        2.0,
        {"first_byte_p50_ms_c1": lambda m: percentile(m.first_ms, 50)},
        stream=True,
    ),
    Part(
        "paced",
        NUM_PACED,
        0.0,
        {"paced_gap_p99_ms": lambda m: percentile(m.gaps_ms, 99)},
        stream=True,
        paced=True,
    ),
)


@dataclass(slots=True)
class Result:
    """The rounds of one arm."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0

    def medians(self) -> dict[str, float]:
        """Median of each figure over the rounds, and how many answers failed in all."""
        found = {name: statistics.median(values) for name, values in self.figures.items()}
        return {**found, "failed": self.failed}


def main() -> int:
    """Measure, write the JSON, print the table."""
    options = read_options()
    load_core, gateway_core = two_cores()
    os.sched_setaffinity(0, {load_core})
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as folder, ExitStack() as stack:
        home = Path(folder)
        direct = stack.enter_context(mock_engine(home, str(load_core)))
        engine = direct.target.url
        relay = stack.enter_context(bare(engine, home, str(gateway_core)))
        ours = stack.enter_context(retort(engine, home, str(gateway_core)))
        tools = options.out.resolve() / "peers"
        peers = [
            stack.enter_context(PEERS[name](engine, home, str(gateway_core), tools))
            for name in options.peers
        ]
        results = take_turns([direct, relay, ours, *peers], options.rounds)
        growth = memory_growth(ours)
        workers = workers_ratio(engine, home, (load_core, gateway_core), options.rounds)
    document: dict[str, object] = {name: result.medians() for name, result in results.items()}
    document["ratio"] = ratios(results)
    document["workers_ratio"] = workers
    document["rss_growth_mb"] = growth["serving"]
    document["committer_rss_growth_mb"] = growth["committer"]
    if not options.skip_vllm:
        os.sched_setaffinity(0, {load_core, gateway_core})
        document["vllm_ratio"] = vllm_ratio(options.demo, console)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gateway.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    show(document)
    console.print(path)
    return 0


def read_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="where its teacher is")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--skip-vllm", action="store_true")
    return parser.parse_args()


def two_cores() -> tuple[int, int]:
    """A core for the load and the mock, and one for the gateways.

    Raises:
        SystemExit: If there are not two.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("bench-gateway needs two cores: one for gateways, one for what asks them")
    return cores[0], cores[1]


def take_turns(arms: list[Arm], rounds: int) -> dict[str, Result]:
    """Measure every part of every arm; a first, unmeasured round warms up."""
    results = {arm.name: Result() for arm in arms}
    with Progress(
        TextColumn("{task.description:20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("", total=(rounds + 1) * len(arms) * len(PARTS))
        for turn in range(rounds + 1):
            for part in PARTS:
                for arm in arms if turn % 2 else reversed(arms):
                    bar.update(task, description=f"{arm.name}: {part.name}")
                    seconds = part.seconds if turn else part.seconds / 4
                    measured = uvloop.run(
                        run(
                            arm.target,
                            connections=part.connections,
                            seconds=seconds,
                            stream=part.stream,
                            paced=part.paced,
                        )
                    )
                    if turn:
                        result = results[arm.name]
                        result.failed += measured.failed
                        for name, figure in part.figures.items():
                            result.figures.setdefault(name, []).append(figure(measured))
                    bar.advance(task)
    return results


def memory_growth(arm: Arm) -> dict[str, float]:
    """What a hundred thousand requests add to memory, in MB: the gateway's, its committer's."""

    def ask(answers: int) -> None:
        asyncio.run(run(arm.target, connections=NUM_CONNECTIONS, answers=answers))

    ask(NUM_WARMING)
    before = arm.rss_mb()
    ask(NUM_FOR_MEMORY)
    return {part: after - before[part] for part, after in arm.rss_mb().items()}


def workers_ratio(engine: str, home: Path, cores: tuple[int, int], rounds: int) -> float:
    """Requests per second of two workers over one: both have both cores, beside mock and load."""
    rates: dict[str, list[float]] = {"1": [], "2": []}
    pinned = ",".join(map(str, cores))
    with ExitStack() as stack:
        arms = {}
        for number in rates:
            folder = home / f"workers{number}"
            folder.mkdir()
            arm = retort(engine, folder, pinned, "--workers", number)
            arms[number] = stack.enter_context(arm)
        for turn in range(rounds + 1):
            for number in arms if turn % 2 else reversed(arms):
                target, seconds = arms[number].target, 3.0 if turn else 1.0
                measured = uvloop.run(run(target, connections=NUM_CONNECTIONS, seconds=seconds))
                if turn:
                    rates[number].append(measured.per_second)
    return paired(rates["2"], rates["1"], lambda two, one: two / one)


def ratios(results: Mapping[str, Result]) -> dict[str, float]:
    """Retort over each peer, and what it adds to the engine itself: medians of the rounds'."""
    ours, direct = results["retort"].figures, results["direct"].figures
    found = {
        f"{figure}_over_{name}": paired(ours[figure], peer.figures[figure], lambda a, b: a / b)
        for name, peer in results.items()
        if name in {*PEERS, "bare"}
        for figure in ("requests_per_second", "streams_per_second")
    }
    for figure in ("p50_ms_c1", "p99_ms_c1", "first_byte_p50_ms_c1"):
        found[f"added_{figure}"] = paired(ours[figure], direct[figure], lambda a, b: a - b)
    return found


def paired(
    ours: Iterable[float], theirs: Iterable[float], compare: Callable[[float, float], float]
) -> float:
    """Median of a comparison round by round; not a number where a peer answered nothing."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(compare(a, b) if b else float("nan") for a, b in pairs)


def show(document: Mapping[str, object]) -> None:
    """Print what was written."""
    figures = [name for part in PARTS for name in part.figures]
    table = Table("", *figures, "failed")
    for name, row in document.items():
        if isinstance(row, dict) and name != "ratio":
            table.add_row(name, *(f"{row[figure]:,.2f}" for figure in (*figures, "failed")))
    out = Console(file=sys.stdout, width=160)
    out.print(table)
    rest = {name: value for name, value in document.items() if not isinstance(value, dict)}
    out.print({**dict(document["ratio"]), **rest})  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.exit(main())
