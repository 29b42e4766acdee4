"""``metrics.json``: what came of a run."""

from dataclasses import dataclass

from pydantic import JsonValue

from trainer.baseline import Baseline
from trainer.course import Point
from trainer.evaluation import Quality
from trainer.retokenizer import Retokenized

METRICS_VERSION = 1
Snapshot = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Metrics:
    """The content of ``metrics.json``.

    Attributes:
        metric: What ``metric`` of every measurement is.
        rows: Examples trained on; those held out are counted in ``heldout``.
        duplicates_dropped: Examples that were not, because they, or nearly they, were there.
        flagged_rows: Examples, held-out ones too, of which the tokens alone count.
        tokens: Run in training, padding included.
        seconds: Of training alone.
        heldout: Of the weights as they are saved, in bfloat16.
        best_step: After which they were taken; 0 if they are those it began with.
        points: Looks at held-out rows along the way.
        baseline: Behaviour cloning for as long; None if it was not wanted, or if the answers are
            the student's own.
        rollouts: Whose answers the log holds, if they are a student's; ``exact_match`` compares
            with those then, and says nothing of right answers.
        retokenized: How the rows came into the student's own tokens; None if it has the teacher's.
        stopped: Why the run ended before its last step; None if it did not.
    """

    loss: str
    metric: str
    steps: int
    rows: int
    duplicates_dropped: int
    flagged_rows: int
    tokens: int
    seconds: float
    tokens_per_second: float
    student_parameters: int
    teacher_parameters: int
    heldout_before_training: Quality
    heldout: Quality
    best_step: int
    points: list[Point]
    baseline: Baseline | None
    rollouts: dict[str, JsonValue] | None
    retokenized: Retokenized | None
    stopped: str | None
    snapshot: Snapshot
