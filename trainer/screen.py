"""What a person sees while a student is made: one bar on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from trainer.loop import Step
from trainer.pilot import Pilot
from trainer.report import name_of

SHOWN_EVERY = 5  # steps between two looks at the loss, which waits for the device


@dataclass(slots=True)
class Screen:
    """A progress bar that names the work in hand, then counts training steps."""

    _progress: Progress
    _task: TaskID
    _tokens: int = 0
    _started: float = field(default_factory=time.perf_counter)

    @classmethod
    @contextmanager
    def opened(cls, steps: int) -> Iterator[Self]:
        """Show the bar until the block ends."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield cls(progress, progress.add_task("starting", total=steps))

    def say(self, words: str) -> None:
        """Name the work in hand."""
        self._progress.update(self._task, description=words)

    def warn(self, words: str) -> None:
        """Write a line that stays."""
        self._progress.console.print(words, style="yellow")

    def expect(self, steps: int) -> None:
        """Begin to count so many steps."""
        self._progress.update(self._task, total=steps, completed=0)

    def advance(self, count: int) -> None:
        """Count what is done of what was expected."""
        self._progress.advance(self._task, count)

    def step(self, step: Step) -> None:
        """Count a finished training step."""
        if step.number == 1:
            self._started, self._tokens = time.perf_counter(), 0
        else:
            self._tokens += step.tokens
        if step.number % SHOWN_EVERY == 0:
            speed = self._tokens / (time.perf_counter() - self._started)
            self.say(f"loss {step.loss.item():.3f}, {speed:,.0f} tokens/s")
        self._progress.update(self._task, completed=step.number)


def show_pilot(pilot: Pilot, metric: str) -> None:
    """Print what short runs reached and what the whole one is expected to."""
    for trial in pilot.trials:
        typer.echo(
            f"{trial.steps:,} steps on {trial.prompts:,} rows: KL to the teacher "
            f"{trial.kl_to_teacher_nats:.4f} nats, {name_of(metric)} {trial.metric:.1%}"
        )
    kl, task = pilot.kl_to_teacher_nats, pilot.metric
    typer.echo(
        f"the whole run, nine times in ten: KL to the teacher {kl.low:.4f} to {kl.high:.4f} nats "
        f"({kl.median:.4f}), {name_of(metric)} {task.low:.1%} to {task.high:.1%} "
        f"({task.median:.1%}); found out for {pilot.price:.0%} of its steps"
    )
