"""What a captured token costs on disk, how exact it is, how fast it is read: `make bench-log`.

Runs on one core. Prints a table and writes JSON; ``--log`` measures a real log's tokens.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from capture.config import CaptureConfig
from capture.rows import LogitRow
from tests.bench.fidelity import Stored, fidelity
from tests.bench.formats import BUDGET, RECOMMENDED, json_bytes, nested_bytes
from tests.bench.store import Store, best_seconds, collate_all, logged_rows
from tests.bench.teacher import FLATTER, SERVED, VOCABULARY, Answered, Traffic, answers

REPEATS = 5
TARGETS = {
    "bytes_per_token": 40.0,
    "max_logprob_error_nats": 1e-4,
    "read_mtokens_per_second": 1.0,
}
Report = dict[str, object]


def measure(rows: Sequence[LogitRow], vocabulary: int, home: Path) -> tuple[Report, Store]:
    """Sizes of the same rows in every layout, and the speed of ours."""
    num_tokens = sum(len(row.completion_ids) for row in rows)
    store = Store.write(rows, home)
    plain, compressed = json_bytes(rows)
    num_bytes = {
        "retort": sum(file.num_bytes for file in store.files),
        "json": plain,
        "json_zstd": compressed,
        "nested_lists": nested_bytes(rows, home / "nested.parquet"),
    }
    dataset = store.read()
    read_seconds = best_seconds(store.read, REPEATS)
    collate_seconds = best_seconds(partial(collate_all, dataset), REPEATS)
    report: Report = {
        "tokens": num_tokens,
        "prompt_tokens": sum(len(row.prompt_ids) for row in rows),
        "completions": len(rows),
        "vocabulary": vocabulary,
        "mass": CaptureConfig().mass,
        "k_max": CaptureConfig().k_max,
        "mean_k": sum(len(row.topk_ids) for row in rows) / num_tokens,
        "bytes_per_token": {
            **{name: size / num_tokens for name, size in num_bytes.items()},
            "distillkit_recommended": RECOMMENDED.bytes_per_token(vocabulary),
            "distillkit_budget": BUDGET.bytes_per_token(vocabulary),
        },
        "bytes_per_token_by_column": {
            name: size / num_tokens for name, size in store.bytes_by_column().items()
        },
        "distillkit": "computed from its published formula; list overhead not counted",
        "read_mtokens_per_second": num_tokens / read_seconds / 1e6,
        "collate_mtokens_per_second": num_tokens / collate_seconds / 1e6,
        "write_mtokens_per_second": num_tokens / store.write_seconds / 1e6,
    }
    return report, store


def measure_traffic(traffic: Traffic, num_tokens: int, home: Path) -> Report:
    """Measure generated traffic, whose exact distributions are known."""
    answered = list(answers(traffic, num_tokens))
    rows = [one.row for one in answered]
    report, store = measure(rows, VOCABULARY, home)
    return {
        "source": traffic.source,
        **_shares(answered),
        **report,
        **asdict(fidelity(answered, Stored.read(store.read()))),
    }


def measure_log(folder: Path, home: Path) -> Report:
    """Measure a real log's tokens; its teacher's full distributions are not known any more."""
    rows = logged_rows(folder)
    vocabulary = 1 + max(int(row.topk_ids.max()) for row in rows)
    report, _ = measure(rows, vocabulary, home)
    return {"source": f"the log's own {len(rows)} completions; vocabulary: ids seen", **report}


def _shares(answered: Sequence[Answered]) -> Report:
    """How peaked the distributions came out."""
    return {
        "sure_fraction": float(np.concatenate([one.is_sure for one in answered]).mean()),
        "mass_outside_top_64": float(np.concatenate([one.outside for one in answered]).mean()),
    }


def missed_targets(report: Report) -> list[str]:
    """Say which targets a report misses, and by how much."""
    found = dict(report)
    sizes = report["bytes_per_token"]
    found["bytes_per_token"] = sizes["retort"] if isinstance(sizes, dict) else None
    missed = []
    for name, target in TARGETS.items():
        value = float(str(found[name]))
        is_missed = value < target if name.startswith("read") else value > target
        if is_missed:
            missed.append(f"{name} is {value:.4g}, target {target:g}")
    return missed


def as_table(reports: dict[str, Report]) -> Table:
    """One column per measurement."""
    table = Table("", *reports)
    names = [name for name in next(iter(reports.values())) if name != "source"]
    for name in names:
        values = [report.get(name) for report in reports.values()]
        if isinstance(values[0], dict):
            parts = [part for part in values[0] if part != "rounding"]
            for part in parts:
                cells = [value.get(part) if isinstance(value, dict) else None for value in values]
                table.add_row(f"{name}: {part}", *map(_cell, cells))
        elif not isinstance(values[0], str | list):
            table.add_row(name, *map(_cell, values))
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def stay_on_one_core() -> None:
    """Make this process, and threads it starts from now on, measure one core."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    pa.set_cpu_count(1)
    torch.set_num_threads(1)


def main(words: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=400_000, help="positions to generate")
    parser.add_argument("--log", type=Path, help="folder of a log whose tokens to measure too")
    parser.add_argument("--out", type=Path, default=Path("bench/log.json"))
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        reports = {
            "served": measure_traffic(SERVED, options.tokens, home / "served"),
            "flatter": measure_traffic(FLATTER, options.tokens // 4, home / "flatter"),
        }
        if options.log:
            reports["log"] = measure_log(options.log, home / "log")
    served = reports.pop("served")
    document = {**served, "missed_targets": missed_targets(served), **reports}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(as_table({"served": served, **reports}))
    for line in missed_targets(served):
        console.print(f"missed: {line}")
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    stay_on_one_core()
    main(sys.argv[1:])
