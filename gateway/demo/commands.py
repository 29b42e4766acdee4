"""``retort demo``: the whole loop on this machine."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from gateway.demo.loop import Plan, run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(  # noqa: PLR0913, PLR0917  a command line's options
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    teacher: Annotated[
        str | None, typer.Option(help="Folder or hub id of a causal LM, instead of our own.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Chat-form JSONL to ask it; with answers, they are scored.")
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Held-out prompts. Default: the test.jsonl beside PROMPTS, else a tenth of them."
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=100, help="Requests to harvest.")] = 2000,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each student.")] = 600,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Agreement a student needs to be promoted.")
    ] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed of traffic and training.")] = 0,
) -> None:
    """Teacher, traffic, capture, distillation, quantization, rollout, rollback and a report."""
    plan = Plan(out, teacher, prompts, test, requests, steps, min_agreement, seed)
    try:
        asyncio.run(run(plan))
    except ExceptionGroup as failures:
        raise first_of(failures) from failures


def first_of(failures: ExceptionGroup[Exception]) -> Exception:
    """The failure that ended the steps running beside it."""
    first = failures.exceptions[0]
    return first_of(first) if isinstance(first, ExceptionGroup) else first
