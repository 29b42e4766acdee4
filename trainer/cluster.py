"""A run's processes on a Ray cluster: the one that RAY_ADDRESS names, else one on this machine."""

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from capture.log import Snapshot
from trainer.cluster_data import distinct_rows
from trainer.config import TrainerConfig
from trainer.errors import ScaleError
from trainer.part import Work
from trainer.results import Metrics
from trainer.scale import PATIENCE


def by_ray(
    worker: Work, config: TrainerConfig, snapshot: Snapshot, restarts: int
) -> Metrics | Exception:
    """Work wherever in the cluster there is room, and start again when a process or machine ends.

    Raises:
        ScaleError: If processes ended again and again.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here phones home
    config.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".ray.", dir=config.out) as scratch,
        redirect_stdout(sys.stderr),  # where Ray would repeat what its processes say
    ):
        ray.init(ignore_reinit_error=True)
        try:
            is_distinct = None if config.duplicates == "keep" else distinct_rows(config, snapshot)
            part = partial(worker, config, snapshot, is_distinct)
            result: Metrics | Exception = (
                _trainer(part, config, scratch, restarts).fit().return_value
            )
        except TrainingFailedError as error:
            raise ScaleError(
                f"a process ended, after {restarts} new starts: {error}; started again, the run "
                "goes on from what it saved"
            ) from error
        finally:
            ray.shutdown()
    return result


def _trainer(
    work: Callable[[], Metrics | Exception | None],
    config: TrainerConfig,
    scratch: str,
    restarts: int,
) -> TorchTrainer:
    return TorchTrainer(
        work,
        torch_config=TorchConfig(timeout_s=round(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=config.scale.processes,
            use_gpu=config.device == "cuda",
            resources_per_worker={"CPU": config.threads},
        ),
        run_config=RunConfig(
            storage_path=scratch, failure_config=FailureConfig(max_failures=restarts)
        ),
    )
