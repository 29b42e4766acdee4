"""A run's curves: in TensorBoard's files always, and in the experiment trackers that are named."""

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from pydantic import JsonValue
from torch.utils.tensorboard import SummaryWriter

from capture.errors import ConfigError
from trainer.config import TrainerConfig
from trainer.manifest import Lineage

PROJECT = "retort"  # of all runs, in trackers that order them by one
Value = bool | int | float | str | None


class Tracker(Protocol):
    """What accelerate's ``GeneralTracker`` is to us."""

    main_process_only: bool

    def start(self) -> None:
        """Begin a run there."""

    def store_init_configuration(self, values: dict[str, Value]) -> None:
        """Note what the run was made with."""

    def log(self, values: dict[str, float], step: int | None) -> None:
        """Add a point to each curve."""

    def finish(self) -> None:
        """End the run."""


def mlflow(out: Path) -> Tracker:
    """MLflow, wherever its own settings say."""
    accelerate = importlib.import_module("accelerate.tracking")
    tracker: Tracker = accelerate.MLflowTracker(experiment_name=PROJECT, run_name=out.name)
    return tracker


def wandb(out: Path) -> Tracker:
    """Weights & Biases, whose own files lie in the run's folder."""
    accelerate = importlib.import_module("accelerate.tracking")
    tracker: Tracker = accelerate.WandBTracker(PROJECT, dir=str(out), name=out.name)
    return tracker


TRACKERS: dict[str, Callable[[Path], Tracker]] = {"mlflow": mlflow, "wandb": wandb}


def check_installed(names: Sequence[str]) -> None:
    """See that trackers can be imported before a run begins.

    Raises:
        ConfigError: If one cannot.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"[trainer] trackers names {name!r}, which is not installed: pip install {name}, "
                "or leave it out; TensorBoard's files are written in any case"
            )


@contextmanager
def opened(config: TrainerConfig, lineage: Lineage) -> Iterator[list[Tracker]]:
    """Begin a run in each tracker that is named, and end it with the block.

    Only the first process of a group may call this.

    Args:
        config: Of the run, which is called after the folder ``out``.
        lineage: What the trackers note of how the student is made.
    """
    if not config.trackers:
        yield []
        return
    _prepare_accelerate(on_cpu=config.device == "cpu")
    # Their words are for people, and stdout may hold our JSON.
    with contextlib.ExitStack() as stack, contextlib.redirect_stdout(sys.stderr):
        trackers = [TRACKERS[name](config.out) for name in config.trackers]
        for tracker in trackers:
            tracker.main_process_only = False  # this one is, and asking for it would need a group
            tracker.start()
            stack.callback(tracker.finish)
            tracker.store_init_configuration(flat(lineage.model_dump(mode="json")))
        yield trackers


def flat(recipe: Mapping[str, JsonValue], prefix: str = "") -> dict[str, Value]:
    """Settings by their dotted names; lists as JSON."""
    found: dict[str, Value] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return found


class Board:
    """Where the curves of a run are drawn."""

    def __init__(self, folder: Path, steps_done: int, trackers: Sequence[Tracker]) -> None:
        """Open TensorBoard's files, and forget what they hold of later steps."""
        self._writer = SummaryWriter(str(folder), purge_step=steps_done + 1)
        self._trackers = trackers

    def draw(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of some curves."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def flush(self) -> None:
        """Write TensorBoard's files out."""
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()


def _prepare_accelerate(*, on_cpu: bool) -> None:
    """Its trackers log by what this sets up; it must not change how many threads there are."""
    threads = torch.get_num_threads()
    importlib.import_module("accelerate").PartialState(cpu=on_cpu)
    torch.set_num_threads(threads)
