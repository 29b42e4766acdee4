"""Build the demo's teacher and its prompts: ``python -m trainer.support_desk OUT``."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trainer.support_desk.build import STANDARD, build
from trainer.support_desk.release import find

MAX_THREADS = 2  # more gain little on a model this small


def main(
    out: Annotated[Path, typer.Argument(help="Folder to fill.", file_okay=False)],
    seed: Annotated[int, typer.Option(min=0, help="Of messages, weights and training.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; 1 where other work is running.")
    ] = None,
) -> None:
    """Draw the support desk's messages and train a teacher on them, unless OUT holds both."""
    metrics = find(out, seed)
    if metrics is None:
        torch.set_num_threads(threads or min(MAX_THREADS, torch.get_num_threads()))
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        stages: dict[str, TaskID] = {}
        with Progress(
            TextColumn("{task.description:12}"), *columns, console=Console(stderr=True)
        ) as bar:

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in stages:
                    stages[stage] = bar.add_task(stage, total=total)
                bar.update(stages[stage], completed=done)

            metrics = build(out, seed, STANDARD, advance)
    rates = ", ".join(f"{name} {100 * rate:.1f} %" for name, rate in metrics.exact_match.items())
    print(
        f"{out}: teacher of {metrics.parameters:,} parameters, exactly right: {rates}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    typer.run(main)
