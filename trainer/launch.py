"""Starting the processes of a run, and starting them again when one of them ends."""

import importlib
import multiprocessing
import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from multiprocessing.connection import wait

from torch.distributed import is_torchelastic_launched
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from capture.errors import ConfigError
from capture.log import Snapshot
from trainer.config import TrainerConfig
from trainer.errors import ScaleError
from trainer.part import find, run_alone, take_part, work
from trainer.results import Metrics

Work = Callable[[TrainerConfig, Snapshot], Metrics | Exception | None]

RESTARTS = 3  # of all processes, after one has ended; then the user is asked


def launched(config: TrainerConfig) -> Metrics | None:
    """Distill in as many processes as are wanted.

    Returns:
        What came of it; None in a process that ``torchrun`` has started beside the first one.

    Raises:
        ConfigError: If the wanted launcher is not installed.
        ScaleError: If processes ended again and again.
    """
    if is_torchelastic_launched():
        return take_part(config)
    if config.scale.processes == 1:
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
    result = start(worker, config, find(config))
    if isinstance(result, Exception):
        raise result
    return result


def by_torchrun(worker: Work, config: TrainerConfig, snapshot: Snapshot) -> Metrics | Exception:
    """Work in processes of this machine, with torchrun's agent in this one.

    Raises:
        ScaleError: If processes ended again and again.
    """
    # Else new processes meet in the old ones' store, where they find addresses of the dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    multiprocessing.set_forkserver_preload([worker.__module__])  # imported once, not by each
    with tempfile.TemporaryDirectory(prefix="retort.") as scratch:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=config.scale.processes,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=RESTARTS,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )
        try:
            results: dict[int, Metrics | Exception] = elastic_launch(settings, attended)(
                worker, config, snapshot
            )
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise ScaleError(
                f"process {rank} ended with exit code {failure.exitcode}, after {RESTARTS} new "
                f"starts: {failure.message}; started again, the run goes on from what it saved"
            ) from error
        except SignalException as signalled:
            raise SystemExit(128 + signalled.sigval) from signalled
    return results[0]


def attended(worker: Work, config: TrainerConfig, snapshot: Snapshot) -> Metrics | Exception | None:
    """Work as long as the process lives that has started this one."""
    starter = multiprocessing.parent_process()
    if starter is not None:
        threading.Thread(target=_end_with, args=(starter.sentinel,), daemon=True).start()
    return worker(config, snapshot)


def _end_with(sentinel: int) -> None:
    """Wait for a process to end, however it does, and end this one."""
    wait([sentinel])
    os._exit(1)


def by_ray(worker: Work, config: TrainerConfig, snapshot: Snapshot) -> Metrics | Exception:
    """Work in processes of the Ray cluster that this machine belongs to, else of a local one.

    Raises:
        ConfigError: If Ray is not installed.
        ScaleError: If processes ended again and again.
    """
    try:
        importlib.import_module("ray.train.torch")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "[trainer.scale] launcher is 'ray', but Ray is not installed: "
            "pip install 'retort-llm[ray]', or use launcher = \"torchrun\""
        ) from error
    cluster = importlib.import_module("trainer.cluster")
    result: Metrics | Exception = cluster.by_ray(worker, config, snapshot, RESTARTS)
    return result
