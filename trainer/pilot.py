"""How good a run will be, found out for a small part of its price: short runs, drawn out."""

import time
from dataclasses import dataclass, replace

import numpy as np

from trainer.course import divide
from trainer.dataset import Dataset, Ints, lot
from trainer.distillation import Distillation
from trainer.errors import ModelError, TooShortError
from trainer.extrapolation import Prediction, predict
from trainer.learner import Learner
from trainer.loop import Recipe, make_optimizer, train
from trainer.student import give, weights_of
from trainer.training import Audience

LEVELS = 4  # short runs, each twice as long as the one before
PRICE = 0.05  # of the whole run, all of them together
FEWEST_STEPS = 80  # of the longest: below that a student has hardly left its start


@dataclass(frozen=True, slots=True)
class Trial:
    """A short run.

    Attributes:
        share: Of the whole run's steps and prompts.
        prompts: Rows that it learned from.
        kl_to_teacher_nats: On held-out rows.
        metric: On held-out rows.
    """

    share: float
    steps: int
    prompts: int
    kl_to_teacher_nats: float
    metric: float


@dataclass(frozen=True, slots=True)
class Pilot:
    """What short runs say about the whole one; intervals hold nine tenths of what is likely.

    Attributes:
        price: Steps of the short runs over those of the whole.
        metric: What weights would be chosen by; predicted from the share that is missing to 1.
    """

    trials: list[Trial]
    price: float
    seconds: float
    kl_to_teacher_nats: Prediction
    metric: Prediction


def run_pilot(run: Distillation, audience: Audience) -> Pilot:
    """Train the run's student for short whiles, on as small a part of its prompts each.

    They are measured on the rows that the whole run will be measured on at its end, since other
    held-out rows may be easier or harder by more than a prediction is wide.

    Args:
        run: Whose student is changed and must not be used afterwards.
        audience: Told of every step.

    Raises:
        TooShortError: If the short runs would cost more than half of the whole.
        ModelError: If the student's tokens are not the teacher's.
    """
    if run.material.retokenized is not None:
        raise ModelError(
            f"{run.config.student}: a pilot predicts KL to the teacher, and a student with a "
            "tokenizer of its own has none: run it without --pilot"
        )
    began = time.perf_counter()
    recipe, start = run.recipe, weights_of(run.student)
    planned = levels(recipe.steps)
    dataset = run.material.dataset
    _, measured = divide(dataset, run.material.heldout_rows, run.config.eval_rows)
    audience.expect(sum(planned))
    trials, steps_before = [], 0
    for steps in planned:
        share = steps / recipe.steps
        rows = part(dataset, run.material.train_rows, share)
        give(run.student, start)
        short = shortened(recipe, steps)
        learner = Learner(run.student, make_optimizer(run.student))
        for step in train(learner, dataset, rows, short):
            audience.step(replace(step, number=steps_before + step.number))
        steps_before += steps
        quality = run.examination.of(run.student, measured)
        trials.append(Trial(share, steps, len(rows), quality.distance_nats, quality.metric))
    shares = [trial.share for trial in trials]
    missing = predict(shares, [1 - trial.metric for trial in trials])
    turned = (missing.median, missing.high, missing.low)
    return Pilot(
        trials=trials,
        price=sum(planned) / recipe.steps,
        seconds=time.perf_counter() - began,
        kl_to_teacher_nats=predict(shares, [trial.kl_to_teacher_nats for trial in trials]),
        metric=Prediction(*(max(0.0, 1 - value) for value in turned)),
    )


def levels(steps: int) -> list[int]:
    """Steps of the short runs for a run of so many (pure).

    Raises:
        TooShortError: If they would cost more than half of it.
    """
    longest = max(FEWEST_STEPS, round(PRICE * steps * 2 ** (LEVELS - 1) / (2**LEVELS - 1)))
    planned = [longest >> level for level in reversed(range(LEVELS))]
    if 2 * sum(planned) > steps:
        raise TooShortError(
            f"a pilot takes {sum(planned)} steps and the whole run {steps}: run it instead"
        )
    return planned


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """The same recipe for fewer steps: its warm-up shrinks with it."""
    return replace(recipe, steps=steps, warmup=recipe.warmup * steps // recipe.steps)


def part(dataset: Dataset, rows: Ints, share: float) -> Ints:
    """Rows of some share of the prompts, by their hash: a larger share holds a smaller one."""
    lots = np.array([lot(dataset.prompt_ids.row(row), b"pilot") for row in rows])
    chosen = rows[lots < share]
    return chosen if len(chosen) else rows[[int(lots.argmin())]]
