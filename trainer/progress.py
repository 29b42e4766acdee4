"""A run that was interrupted goes on where it was: the same weights as if nothing had happened."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from trainer.student import give

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
        tensorboard: Where the run's curves are written until it ends.
    """

    def __init__(self, folder: Path, run: str) -> None:
        """Look into a folder.

        Args:
            folder: Made at the first ``save``.
            run: What decides the run's weights, digested; another run's progress is not taken up.
        """
        self._path = folder / STATE
        self._run = run
        self.tensorboard = folder / "tensorboard"

    def restore(self, student: PreTrainedModel, optimizer: AdamW) -> Done:
        """Load what was saved, if it is this run's; else forget it and begin at step 0."""
        try:
            with safe_open(self._path, "pt") as state:
                said = state.metadata() or {}
                tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            said, tensors = {}, {}
        if said.get("run") != self._run:
            self.remove()
            return Done()
        give(student, {name.removeprefix(STUDENT): value for name, value in tensors.items()})
        document = optimizer.state_dict()
        document["state"] = dict(_moments(tensors))
        optimizer.load_state_dict(document)
        return Done(int(said["steps"]), int(said["tokens"]), float(said["seconds"]))

    def save(self, student: PreTrainedModel, optimizer: AdamW, done: Done) -> None:
        """Put everything in place that the next step depends on."""
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
        save_file({**weights, **moments}, temporary, metadata)
        temporary.replace(self._path)

    def remove(self) -> None:
        """Forget it: the run has ended, or another one begins."""
        shutil.rmtree(self._path.parent, ignore_errors=True)


def _moments(tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The optimizer's state of each parameter, by its number."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(OPTIMIZER):
            index, _, key = name.removeprefix(OPTIMIZER).partition(".")
            found.setdefault(int(index), {})[key] = value
    yield from sorted(found.items())
