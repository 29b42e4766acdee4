"""What a pilot predicts beside what the whole run reaches, on the log of ``retort demo``.

``python -m tests.bench.pilots --home HOME`` asks ``retort distill plan --pilot`` and then runs
``retort distill``, for several lengths of a run and seeds.
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.distilling import told, write_run
from tests.bench.models import demo_teacher

MEASURED = ("kl_to_teacher_nats", "metric")
console = Console(stderr=True)


def main() -> int:
    """Predict, run, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("demo"), help="of `retort demo`")
    parser.add_argument("--teacher", type=Path, help="who answered; default: the demo's own")
    parser.add_argument("--steps", type=int, nargs="+", default=[600, 1200, 2400])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    home = options.home.resolve()
    teacher = (options.teacher or demo_teacher(home)).resolve()
    runs = [(steps, seed) for seed in range(options.seeds) for steps in sorted(options.steps)[::-1]]
    with (
        tempfile.TemporaryDirectory(prefix="retort-bench-") as folder,
        ThreadPoolExecutor(2) as two,
    ):
        compared = partial(compare, log=home / "log", teacher=teacher, work=Path(folder))
        rows = sorted(two.map(compared, *zip(*runs, strict=True)), key=lambda row: row["steps"])
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "pilots.json"
    path.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    show(rows)
    console.print(path)
    return 0


def compare(steps: int, seed: int, log: Path, teacher: Path, work: Path) -> dict[str, Any]:
    """Both of one run."""
    name = f"{steps}-{seed}"
    path = work / f"{name}.toml"
    write_run(
        path,
        log=str(log),
        where="role = 'incumbent'",
        teacher=str(teacher),
        out=name,
        steps=steps,
        seed=seed,
        heldout_fraction=0.1,
        baseline=False,
    )
    pilot = told(path, "plan", "--pilot")["pilot"]
    reached = told(path)["heldout"]
    console.print(f"{steps} steps, seed {seed}: {reached['kl_to_teacher_nats']:.3f} nats")
    row: dict[str, Any] = {
        "steps": steps,
        "seed": seed,
        "price": pilot["price"],
        "trials": pilot["trials"],
    }
    for value in MEASURED:
        within = pilot[value]["low"] <= reached[value] <= pilot[value]["high"]
        row[value] = {"predicted": pilot[value], "reached": reached[value], "within": within}
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Print predictions and what came."""
    table = Table(
        "steps", "seed", "price", "KL: predicted", "reached", "right: predicted", "reached"
    )
    for row in rows:
        cells = []
        for value in MEASURED:
            one = row[value]
            low, middle, high = (one["predicted"][name] for name in ("low", "median", "high"))
            cells += [f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{one['reached']:.3f}"]
        table.add_row(str(row["steps"]), str(row["seed"]), f"{100 * row['price']:.0f} %", *cells)
    Console(file=sys.stdout, width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
