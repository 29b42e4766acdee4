"""What a person sees while a bundle is made: one bar on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


@dataclass(frozen=True, slots=True)
class Screen:
    """A bar that names the work in hand and counts its steps."""

    _progress: Progress
    _task: TaskID

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Self]:
        """Show the bar until the block ends."""
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield cls(progress, progress.add_task("starting", total=None))

    def say(self, words: str, steps: int | None = None) -> None:
        """Name the work in hand and its number of steps, None if unknown."""
        self._progress.reset(self._task, description=words, total=steps)

    def advance(self) -> None:
        """Count one finished step."""
        self._progress.advance(self._task)

    def warn(self, words: str) -> None:
        """Leave a line above the bar."""
        self._progress.console.print(f"warning: {words}", markup=False, highlight=False)
