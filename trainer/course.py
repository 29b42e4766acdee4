"""How a run goes on held-out prompts, and the weights that did best there: those are kept.

Held-out prompts are of two kinds, so that nothing is measured on what it was chosen by.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from trainer.checkpoint import disk_errors
from trainer.dataset import Dataset, Ints, lot
from trainer.evaluation import Quality
from trainer.noise import Mean
from trainer.student import give, weights_of

POINTS, BEST = "points.json", "best.safetensors"
NEAR = 1.05  # times the least KL so far: nearer than that, a few hundred answers do not tell


@dataclass(frozen=True, slots=True)
class Point:
    """A look at the held-out prompts that weights are chosen by.

    Attributes:
        step: After which it was taken.
        tokens: Trained on until then, padding included.
        seconds: Of training until then.
        loss: Of that step, in nats per completion token.
    """

    step: int
    tokens: int
    seconds: float
    loss: float
    quality: Quality


Choice = Callable[[Sequence[Point]], Point]
"""Names the best of some points in order: the last one, or the best of those before it."""


def by_metric(points: Sequence[Point]) -> Point:
    """The best by the task's metric; what lies within its noise is decided by nearness.

    A metric of a few hundred answers moves by chance from look to look, KL less, and the highest of
    ten looks is the luckiest one too. So points whose metric is not surely below the highest so far
    count as equally good, and of those, as far as KL tells (``NEAR``), the latest is kept: its
    learning rate was the lowest.
    """
    best = highest = nearest = points[0]
    for point in points[1:]:
        highest = max(highest, point, key=lambda one: one.quality.metric)
        most, distance = _metric(highest), point.quality.distance_nats
        if _metric(point).is_surely_below(most):
            continue
        if _metric(nearest).is_surely_below(most) or distance < nearest.quality.distance_nats:
            nearest = point
        if _metric(best).is_surely_below(most) or distance <= NEAR * nearest.quality.distance_nats:
            best = point
    return best


def _metric(point: Point) -> Mean:
    return Mean(point.quality.metric, point.quality.metric_rows)


class Course:
    """The points of a run so far, in a folder beside the weights of the best of them.

    Attributes:
        points: In order.
    """

    def __init__(self, folder: Path, steps_done: int = 0, choice: Choice = by_metric) -> None:
        """Take up what a folder holds of the steps that are done; what came later comes again."""
        self._folder = folder
        self._choice = choice
        self.points: list[Point] = []
        if steps_done and (folder / POINTS).is_file():
            found = json.loads((folder / POINTS).read_text(encoding="utf-8"))
            points = [Point(**{**one, "quality": Quality(**one["quality"])}) for one in found]
            self.points = [point for point in points if point.step <= steps_done]

    @property
    def best(self) -> Point:
        """The point whose weights are kept."""
        return self._choice(self.points)

    def add(self, student: PreTrainedModel, point: Point) -> None:
        """Note a point and keep its weights if it is the best so far.

        Raises:
            FullDiskError: If they cannot be written.
        """
        self.points.append(point)
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.best is point:
            temporary = self._folder / f"{BEST}.tmp"
            with disk_errors(self._folder):
                save_file(weights_of(student), temporary)
            temporary.replace(self._folder / BEST)
        temporary = self._folder / f"{POINTS}.tmp"
        temporary.write_text(json.dumps([asdict(one) for one in self.points]), encoding="utf-8")
        temporary.replace(self._folder / POINTS)

    def take_best(self, student: PreTrainedModel) -> Point:
        """Give the student the weights that did best."""
        give(student, load_file(self._folder / BEST))
        return self.best


def divide(dataset: Dataset, heldout_rows: Ints, most_to_choose: int) -> tuple[Ints, Ints]:
    """Divide held-out rows by their prompt's hash: those to choose by, and those to measure on.

    Args:
        dataset: Of the run.
        heldout_rows: At least one.
        most_to_choose: Rows to choose by; they are read again and again.

    Returns:
        Both of either kind, or the same rows twice where all prompts fall to one side.
    """
    lots = np.array([lot(dataset.prompt_ids.row(row), b"measured") for row in heldout_rows])
    is_measured = lots < 1 / 2
    chosen, measured = heldout_rows[~is_measured], heldout_rows[is_measured]
    if not len(chosen) or not len(measured):
        chosen = measured = heldout_rows
    return chosen[:most_to_choose], measured
