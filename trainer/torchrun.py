"""A run's processes on this machine, with torchrun's agent in the one that starts them."""

import multiprocessing
import os
import tempfile
import threading
import uuid
from multiprocessing.connection import wait

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from capture.log import Snapshot
from trainer.config import TrainerConfig
from trainer.errors import ScaleError
from trainer.part import Work
from trainer.results import Metrics


def by_torchrun(
    worker: Work, config: TrainerConfig, snapshot: Snapshot, restarts: int
) -> Metrics | Exception:
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
            max_restarts=restarts,
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
                f"process {rank} ended with exit code {failure.exitcode}, after {restarts} new "
                f"starts: {_reason(failure)}; started again, the run goes on from what it saved"
            ) from error
        except SignalException as signalled:
            raise SystemExit(128 + signalled.sigval) from signalled
    return results[0]


def _reason(failure: ProcessFailure) -> str:
    """What an error said, without where it was raised."""
    said = failure.error_file_data.get("message")
    return str(said["message"]) if isinstance(said, dict) else failure.message


def attended(worker: Work, config: TrainerConfig, snapshot: Snapshot) -> Metrics | Exception | None:
    """Work as long as the process lives that has started this one."""
    starter = multiprocessing.parent_process()
    if starter is not None:
        threading.Thread(target=_end_with, args=(starter.sentinel,), daemon=True).start()
    return worker(config, snapshot, None)


def _end_with(sentinel: int) -> None:
    """Wait for a process to end, however it does, and end this one."""
    wait([sentinel])
    os._exit(1)
