"""When refinement on a student's own answers ends early: it becomes surer than its teacher is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from trainer.course import Course, Point
from trainer.evaluation import Quality
from trainer.student import give

ENTROPY_FLOOR = 0.6  # of the teacher's entropy


@dataclass(frozen=True, slots=True)
class EntropyGuard:
    """The least entropy on held-out rows, over the teacher's, that a student may have.

    Attributes:
        floor: ``ENTROPY_FLOOR``, or that share of where a student began that began below it.
    """

    floor: float

    @classmethod
    def of(cls, start: Quality) -> "EntropyGuard":
        """The guard of a student as it was before the first step, on the same rows."""
        began = 1.0 if start.entropy_ratio is None else start.entropy_ratio
        return cls(ENTROPY_FLOOR * (began if began < ENTROPY_FLOOR else 1.0))

    def is_broken(self, quality: Quality) -> bool:
        """Whether the student has become too sure."""
        return quality.entropy_ratio is not None and quality.entropy_ratio < self.floor

    def choice(self, points: Sequence[Point]) -> Point:
        """The weights to keep: those nearest to the teacher, of those that are not too sure.

        Answers to the letter count nothing here: those of the log are the student's own.
        """
        return min(
            points,
            key=lambda point: (self.is_broken(point.quality), point.quality.distance_nats),
        )

    def settle(
        self, course: Course, student: PreTrainedModel, start: Mapping[str, Tensor], steps: int
    ) -> tuple[int, str | None]:
        """Give the student the weights that are kept.

        Args:
            course: Of a run that has ended.
            student: That was trained.
            start: Its weights before the first step; they are kept if all others are too sure.
            steps: That were wanted.

        Returns:
            The step after which the weights were taken, 0 for the start's, and why the run ended
            early; None if it did not.
        """
        best, last = course.take_best(student), course.points[-1]
        if not self.is_broken(last.quality):
            return best.step, None
        is_start = self.is_broken(best.quality)
        if is_start:
            give(student, start)
        kept = "with which it began" if is_start else f"after step {best.step}"
        return 0 if is_start else best.step, (
            f"stopped after step {last.step} of {steps}: the student's entropy on held-out rows "
            f"fell to {last.quality.entropy_ratio:.2f} of the teacher's, expected at least "
            f"{self.floor:.2f}; the weights kept are those {kept}. Go on with new rollouts of "
            "this checkpoint, or begin again with a lower learning_rate"
        )
