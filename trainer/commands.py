"""``retort distill``: from a snapshot of the log to a checkpoint."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from trainer.config import SHARED_VOCABULARY, TrainerConfig
from trainer.follow import follow
from trainer.launch import launched
from trainer.options import ConfigOption, JsonOption, given_config
from trainer.part import prepare
from trainer.pilot import run_pilot
from trainer.plan import Gpu, make_plan
from trainer.report import verdict
from trainer.results import Metrics
from trainer.rollout_commands import rollouts
from trainer.screen import Screen, show_pilot
from trainer.synthesis_commands import synthesize
from trainer.training import memory_errors

distill_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

distill_app.command()(rollouts)
distill_app.command()(synthesize)


@distill_app.callback(invoke_without_command=True)
def distill(
    context: typer.Context,
    config_path: ConfigOption = None,
    *,
    follows: Annotated[
        bool, typer.Option("--follow", help="Train again, from the checkpoint, as the log grows.")
    ] = False,
    growth: Annotated[
        float, typer.Option(min=0, help="With --follow: by what share of its rows.")
    ] = 0.2,
    as_json: JsonOption = False,
) -> None:
    """Train a student on the log and write its checkpoint and metrics."""
    if context.invoked_subcommand is not None:
        return
    config = given_config(config_path)
    if config.loss == SHARED_VOCABULARY:
        typer.echo(
            f"{config.loss} is experimental: whether it helps beside the words alone, the baseline "
            "tells",
            err=True,
        )
    runs = follow(config, growth) if follows else filter(None, [launched(config)])
    for metrics in runs:  # none in a process beside the first of a group: that one tells
        show(config, metrics, as_json=as_json)


def show(config: TrainerConfig, metrics: Metrics, *, as_json: bool) -> None:
    """Print what came of a run."""
    if as_json:
        typer.echo(json.dumps(asdict(metrics)))
        return
    typer.echo(f"{config.out / 'checkpoint'}  ({metrics.tokens_per_second:,.0f} tokens/s)")
    for name, value in asdict(metrics.heldout).items():
        typer.echo(f"  {name:20} {'-' if value is None else format(value, ',.4g')}")
    typer.echo(verdict(asdict(metrics)))
    typer.echo(config.out / "report.html")


@distill_app.command()
def plan(
    config_path: ConfigOption = None,
    gpu: Annotated[
        Gpu | None, typer.Option(help="Estimate the hours on this GPU instead of here.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="What an hour of that machine costs.")
    ] = None,
    *,
    pilot: Annotated[
        bool, typer.Option("--pilot", help="Try short runs and predict what the whole will reach.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a run would read, cost and take; writes nothing."""
    config = given_config(config_path)
    started = time.perf_counter()
    with Screen.opened(config.steps) as screen, memory_errors(config.batch_tokens):
        run = prepare(config, screen.say)
        prepared_seconds = time.perf_counter() - started
        tried = run_pilot(run, screen) if pilot else None
        screen.say("timing a few steps")
        expected = asdict(make_plan(run, prepared_seconds, gpu, price_per_hour))
    if as_json:
        typer.echo(json.dumps(expected if tried is None else {**expected, "pilot": asdict(tried)}))
        return
    for name, value in expected.items():
        if value is not None:
            figure = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
            typer.echo(f"{name:20} {figure}")
    if tried is not None:
        show_pilot(tried, config.metric)
