"""One process's part in a run: alone, or as one of a group that a launcher has prepared."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pyarrow as pa
import torch.distributed as dist
import typer

from capture.errors import CaptureError, LogError
from capture.log import KEY, Log, Snapshot, View
from trainer.begun import begun_snapshot
from trainer.config import TrainerConfig
from trainer.dataset import COLUMNS, Flags, check_teacher
from trainer.distillation import Distillation
from trainer.duplicates import distinct
from trainer.errors import FullDiskError, MetricError, TooLargeError, TrainerError
from trainer.occupied import occupied
from trainer.options import open_log
from trainer.results import Metrics
from trainer.scale import ALONE, Group, joined
from trainer.screen import Screen
from trainer.student import tokenizer_folder
from trainer.training import memory_errors

Work = Callable[[TrainerConfig, Snapshot, Flags | None], Metrics | Exception | None]
"""What each process of a run does with a snapshot, of which certain rows may have been chosen; the
first one's result counts."""

# Of one process, while others wait for it.
ALONE_ERRORS = (TooLargeError, FullDiskError, MetricError)


def find(config: TrainerConfig) -> Snapshot:
    """Look for everything that a run reads, and name the rows that are there now.

    Raises:
        ConfigError: If a folder is not there.
        CaptureError: If the log cannot be read.
    """
    view: View = "examples" if config.flagged == "leave_out" else "answers"
    return open_log(config).snapshot(config.where, view)


def begin(config: TrainerConfig, warn: Callable[[str], None]) -> Snapshot:
    """Name the rows of a run: those that it began with if it was interrupted, else the newest.

    Args:
        config: Of the run.
        warn: Called with a line about what has changed since it began.

    Raises:
        ConfigError: As ``find`` does.
        CaptureError: Likewise.
    """
    log, before = open_log(config), begun_snapshot(config)
    if before is None:
        return find(config)
    try:
        log.read(before, KEY)
    except LogError as error:
        warn(f"the run that was interrupted cannot go on, and begins anew: {error}")
        return find(config)
    if log.versions() != before.versions:
        warn(
            "the log has changed since this run began: it goes on with the rows of then, and the "
            "next run reads what is new"
        )
    return before


def prepare(
    config: TrainerConfig,
    say: Callable[[str], None],
    group: Group = ALONE,
    snapshot: Snapshot | None = None,
    is_distinct: Flags | None = None,
) -> Distillation:
    """Read the log's snapshot and make the student to start from.

    Args:
        config: Of the run.
        say: Called with a few words before each slow part.
        group: Of the processes that train it together.
        snapshot: Of the log; without one the first process takes it, for all.
        is_distinct: Which of its rows are no duplicates, if somebody has looked already.

    Raises:
        CaptureError: If the log cannot be read, or a setting is wrong.
        TrainerError: If the rows or the models cannot be used.
    """
    say("reading the log")
    seen = group.first(lambda: find(config)) if snapshot is None else snapshot
    table = Log(config.log).read(seen, columns_of(config, seen), is_distinct)
    if is_distinct is None and config.duplicates != "keep":
        check_teacher(table, config.teacher)
        say("looking for duplicates")
        is_kept = distinct(table, config.heldout_fraction, config.duplicates)
        table = table.filter(pa.array(is_kept))
    return Distillation.prepare(config, table, seen.model_dump(mode="json"), say, group)


def columns_of(config: TrainerConfig, snapshot: Snapshot) -> tuple[str, ...]:
    """What a run reads of its rows."""
    flags = ("flags",) if snapshot.view == "answers" else ()
    requests = ("request",) if tokenizer_folder(config) != config.teacher else ()
    return (*COLUMNS, *flags, *requests)


def run_alone(config: TrainerConfig) -> Metrics:
    """Distill in this process."""
    with Screen.opened(config.steps) as screen, memory_errors(config.batch_tokens):
        return prepare(config, screen.say, snapshot=begin(config, screen.warn)).run(screen)


def take_part(
    config: TrainerConfig, snapshot: Snapshot | None = None, is_distinct: Flags | None = None
) -> Metrics | None:
    """Distill as one process of a group; it is told to the first one only."""
    group = joined(config)
    metrics = None
    with memory_errors(config.batch_tokens), ExitStack() as held:
        if snapshot is None:  # nobody has started this run who would keep others out
            group.first(lambda: held.enter_context(occupied(config.out)))
            snapshot = group.first(lambda: begin(config, partial(typer.echo, err=True)))
        if group.leads:
            with Screen.opened(config.steps) as screen:
                metrics = prepare(config, screen.say, group, snapshot, is_distinct).run(screen)
        else:
            prepare(config, _say_nothing, group, snapshot, is_distinct).follow()
    group.same(None)  # none leaves before the first has finished
    dist.destroy_process_group()
    return metrics


def work(
    config: TrainerConfig, snapshot: Snapshot, is_distinct: Flags | None
) -> Metrics | Exception | None:
    """Take part in a process that a launcher starts again when it fails.

    What would fail again is returned, not raised, if all processes come upon it together. What
    befalls one alone is raised: then the others have to be ended by the launcher.
    """
    try:
        return take_part(config, snapshot, is_distinct)
    except ALONE_ERRORS:
        raise
    except (CaptureError, TrainerError) as error:
        return error


def _say_nothing(_words: str) -> None:
    """The first process says it."""
