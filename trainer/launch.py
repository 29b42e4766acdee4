"""Starting the processes of a run, and starting them again when one of them ends."""

import importlib
from functools import partial

import typer
from torch.distributed import is_torchelastic_launched

from capture.errors import ConfigError
from capture.log import Snapshot
from trainer.config import TrainerConfig
from trainer.occupied import occupied
from trainer.part import Work, begin, run_alone, take_part, work
from trainer.results import Metrics
from trainer.tracking import check_installed

RESTARTS = 3  # of all processes, after one has ended; then the user is asked


def launched(config: TrainerConfig) -> Metrics | None:
    """Distill in as many processes as are wanted.

    Returns:
        What came of it; None in a process that ``torchrun`` has started beside the first one.

    Raises:
        ConfigError: If the wanted launcher or tracker is not installed, or another run is writing
            to the same folder.
        ScaleError: If processes ended again and again.
    """
    check_installed(config.trackers)
    if is_torchelastic_launched():
        return take_part(config)
    with occupied(config.out):
        if config.scale.processes == 1 and config.scale.launcher == "torchrun":
            return run_alone(config)
        return launch(work, config)


def launch(worker: Work, config: TrainerConfig) -> Metrics:
    """Let a function work in several processes and take the first one's result.

    Args:
        worker: Importable, because the processes import it. What it returns as an error is
            raised here.
        config: Of the run.

    Raises:
        ScaleError: If processes ended again and again.
    """
    start = by_torchrun if config.scale.launcher == "torchrun" else by_ray
    result = start(worker, config, begin(config, partial(typer.echo, err=True)), RESTARTS)
    if isinstance(result, Exception):
        raise result
    return result


def by_torchrun(
    worker: Work, config: TrainerConfig, snapshot: Snapshot, restarts: int
) -> Metrics | Exception:
    """Work in processes of this machine.

    Raises:
        ScaleError: If processes ended again and again.
    """
    torchrun = importlib.import_module("trainer.torchrun")  # seconds, for one process in vain
    result: Metrics | Exception = torchrun.by_torchrun(worker, config, snapshot, restarts)
    return result


def by_ray(
    worker: Work, config: TrainerConfig, snapshot: Snapshot, restarts: int
) -> Metrics | Exception:
    """Work in processes of the Ray cluster that this machine belongs to, else of a local one.

    Raises:
        ConfigError: If Ray is not installed.
        ScaleError: If processes ended again and again.
    """
    try:
        for module in ("ray.train.torch", "ray.data"):
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            "[trainer.scale] launcher is 'ray', but Ray is not installed: "
            "pip install 'retort-llm[ray]', or use launcher = \"torchrun\""
        ) from error
    cluster = importlib.import_module("trainer.cluster")
    result: Metrics | Exception = cluster.by_ray(worker, config, snapshot, restarts)
    return result
