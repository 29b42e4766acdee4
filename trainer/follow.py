"""Training while the log grows: one run after the other, each from the last one's checkpoint.

What is appended while a run goes on is learned from in the next one, so that every run has a
snapshot, and every checkpoint says which rows it has seen.
"""

import time
from collections.abc import Iterator

from torch.distributed import is_torchelastic_launched

from capture.errors import ConfigError
from capture.log import Log, Snapshot
from trainer.config import TrainerConfig
from trainer.launch import launched
from trainer.part import find
from trainer.results import Metrics

PAUSE_SECONDS = 5.0  # between two looks at the log


def follow(config: TrainerConfig, growth: float) -> Iterator[Metrics]:
    """Run again whenever the log has grown enough; ends when it is not asked for more.

    Args:
        config: Of every run; the first starts from ``out/checkpoint`` if there is one.
        growth: By what share of its rows the snapshot has to grow for another run.

    Raises:
        CaptureError: If the log cannot be read, or a setting is wrong.
        TrainerError: If a run fails; what was finished before is left.
    """
    if is_torchelastic_launched():
        raise ConfigError(
            "--follow starts the processes of every run itself: say how many by "
            "[trainer.scale] processes, and do not start it by torchrun"
        )
    while True:
        checkpoint = config.out / "checkpoint"
        if checkpoint.is_dir():
            config = config.model_copy(update={"student": checkpoint, "from_scratch": False})
        metrics = launched(config)
        if metrics is None:
            return
        yield metrics
        seen = Snapshot.model_validate(metrics.snapshot)
        wait_for_rows(config, seen, round(seen.num_rows * (1 + growth)))


def wait_for_rows(config: TrainerConfig, seen: Snapshot, wanted: int) -> None:
    """Return once the run's filter selects so many rows, and more than it has seen."""
    log, versions = Log(config.log), seen.versions
    while True:
        now = log.versions()  # costs little; counting reads all keys
        if now != versions and find(config).num_rows >= max(wanted, seen.num_rows + 1):
            return
        versions = now
        time.sleep(PAUSE_SECONDS)
