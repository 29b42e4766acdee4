"""A run that was interrupted goes on where it was: the same weights as if nothing had happened."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from trainer.checkpoint import disk_errors, replacing
from trainer.errors import DivergedError
from trainer.student import give

logger = logging.getLogger(__name__)

STATE = "state.safetensors"
STUDENT, OPTIMIZER = "student.", "optimizer."


@dataclass(frozen=True, slots=True)
class Done:
    """How far a run has come.

    Attributes:
        steps: Finished.
        tokens: Run in them, padding included.
        seconds: That they took.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Progress:
    """A folder with the weights and the optimizer's state after some step, replaced whole.

    Attributes:
        checkpoint: Where the finished student is until the whole run has ended.
        tensorboard: Likewise its curves.
    """

    def __init__(self, folder: Path, run: str) -> None:
        """Look into a folder.

        Args:
            folder: Made at the first ``save``.
            run: What decides the run's weights, digested; another run's progress is not taken up.
        """
        self._path = folder / STATE
        self._run = run
        self.checkpoint = folder / "checkpoint"
        self.tensorboard = folder / "tensorboard"

    def restore(self, student: PreTrainedModel, optimizer: AdamW) -> Done:
        """Load what was saved, if it is this run's; else begin at step 0.

        Another run's is moved aside, where that run, started again, finds it.
        """
        self._take_place()
        if not self._path.exists():
            return Done()
        with safe_open(self._path, "pt") as state:
            said = state.metadata()
            tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118
        give(student, {name.removeprefix(STUDENT): value for name, value in tensors.items()})
        document = optimizer.state_dict()
        document["state"] = dict(_moments(tensors))
        optimizer.load_state_dict(document)
        return Done(int(said["steps"]), int(said["tokens"]), float(said["seconds"]))

    def _take_place(self) -> None:
        """Have in the folder what is this run's, or nothing."""
        folder, owner = self._path.parent, self._owner()
        if owner == self._run:
            return
        if owner is None:
            self.remove()  # nothing, or torn
        else:
            aside = self._aside(owner)
            folder.rename(aside)
            logger.warning(
                "%s held another run's progress (other settings, data or student), which is now "
                "in %s: that run, started again, goes on from there; else remove it",
                folder,
                aside,
            )
        if self._aside(self._run).exists():
            self._aside(self._run).rename(folder)

    def _owner(self) -> str | None:
        """Whose progress it is; None where nothing whole was saved."""
        try:
            with safe_open(self._path, "pt") as state:
                owner: str | None = (state.metadata() or {}).get("run")
                return owner
        except (FileNotFoundError, SafetensorError):
            return None

    def _aside(self, run: str) -> Path:
        folder = self._path.parent
        return folder.with_name(f"{folder.name}-of-{run[:12]}")

    def save(self, student: PreTrainedModel, optimizer: AdamW, done: Done) -> None:
        """Put everything in place that the next step depends on.

        Raises:
            FullDiskError: If it cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        weights = {STUDENT + name: p.detach() for name, p in student.named_parameters()}
        moments = {
            f"{OPTIMIZER}{index}.{name}": value
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        said = {"run": self._run, "steps": done.steps, "tokens": done.tokens}
        metadata = {name: str(value) for name, value in {**said, "seconds": done.seconds}.items()}
        temporary = self._path.with_suffix(".tmp")
        with disk_errors(self._path.parent):
            save_file({**weights, **moments}, temporary, metadata)
        temporary.replace(self._path)

    def publish(self, out: Path) -> None:
        """Put the finished student and its curves in place, each whole."""
        with replacing(out / "tensorboard") as curves:
            shutil.copytree(self.tensorboard, curves, dirs_exist_ok=True)
        with replacing(out / "checkpoint") as new:
            new.rmdir()
            self.checkpoint.rename(new)

    @contextmanager
    def published_if_diverged(self, out: Path) -> Iterator[None]:
        """Where what follows a finished student diverges, put that in place all the same."""
        try:
            yield
        except DivergedError:
            self.publish(out)
            raise

    def remove(self) -> None:
        """Forget it: the run has ended, or nothing was saved."""
        shutil.rmtree(self._path.parent, ignore_errors=True)


def _moments(tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The optimizer's state of each parameter, by its number."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(OPTIMIZER):
            index, _, key = name.removeprefix(OPTIMIZER).partition(".")
            found.setdefault(int(index), {})[key] = value
    yield from sorted(found.items())
