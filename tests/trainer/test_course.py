from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.course import Course, Point, by_metric, divide
from trainer.dataset import Dataset, from_table
from trainer.evaluation import Quality

QUALITY = Quality(1.0, 0.5, 0.0, 0.0, 8, 1.0, 0.5, 1.0, 0.1, 8, 48)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("course") / "teacher")


@pytest.fixture(scope="module")
def dataset(teacher: Path) -> Dataset:
    return from_table(answer(teacher, 60), teacher)


def point(step: int, exact: float, kl: float, rows: int = 10_000) -> Point:
    quality = replace(QUALITY, metric=exact, metric_rows=rows, kl_to_teacher_nats=kl)
    return Point(step, 10 * step, 1.0 * step, 2.0, quality)


def test_the_weights_that_did_best_are_kept(teacher: Path, tmp_path: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    course, weight = Course(tmp_path / "course"), student.lm_head.weight
    for step, exact, kl in [(1, 0.2, 0.5), (2, 0.4, 0.4), (3, 0.4, 0.3), (4, 0.3, 0.1)]:
        torch.nn.init.constant_(weight, float(step))
        course.add(student, point(step, exact, kl))

    assert course.take_best(student).step == 3
    assert weight.unique().tolist() == [3.0]
    assert [one.step for one in course.points] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rows", "points", "best"),
    [
        (50, [(0.80, 0.5), (0.84, 0.4), (0.82, 0.3)], 3),  # within noise the nearest
        (10_000, [(0.80, 0.5), (0.84, 0.4), (0.82, 0.3)], 2),
        (50, [(0.82, 0.3), (0.84, 0.4)], 1),
        (50, [(0.75, 0.3), (0.95, 0.6)], 2),  # surely better
        (50, [(0.90, 0.4), (0.80, 0.3), (0.70, 0.2), (0.60, 0.1)], 2),  # no slope downwards
        (50, [(1.0, 0.4), (0.98, 0.3)], 2),
        # As it was seen: the luckiest of many looks, at a student far from its teacher.
        (196, [(0.959, 0.019), (0.883, 0.017), (0.918, 0.023), (0.924, 0.0053)], 4),
        (131, [(0.748, 0.0784), (0.718, 0.0735), (0.763, 0.0808), (0.71, 0.0741)], 4),  # as near
        (50, [(0.9, 0.100), (0.9, 0.104), (0.9, 0.108), (0.9, 0.112)], 2),  # no slope either
    ],
)
def test_a_metric_decides_as_far_as_it_can_tell(
    rows: int, points: list[tuple[float, float]], best: int
) -> None:
    course = [point(step, *found, rows) for step, found in enumerate(points, start=1)]

    assert by_metric(course).step == best
    for end in range(2, len(course) + 1):  # what is kept is the last one or was kept before
        assert by_metric(course[:end]) in (course[end - 1], by_metric(course[: end - 1]))


def test_it_goes_on_from_what_is_done_and_forgets_what_comes_again(
    teacher: Path, tmp_path: Path
) -> None:
    student = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    course = Course(tmp_path / "course")
    for step in (10, 20, 30):
        course.add(student, point(step, step / 100, 1.0))

    again = Course(tmp_path / "course", steps_done=25)
    assert again.points == course.points[:2]
    assert Course(tmp_path / "course").points == []


def test_what_weights_are_chosen_by_is_not_what_they_are_measured_on(dataset: Dataset) -> None:
    rows = np.arange(len(dataset))
    chosen, measured = divide(dataset, rows, 1000)

    assert sorted([*chosen, *measured]) == rows.tolist()
    assert min(len(chosen), len(measured)) >= 15
    assert divide(dataset, rows, 5)[0].tolist() == chosen[:5].tolist()
    one, other = (
        {dataset.prompt_ids.row(row).tobytes() for row in side} for side in (chosen, measured)
    )
    assert one.isdisjoint(other)


def test_a_single_held_out_row_serves_for_both(dataset: Dataset) -> None:
    chosen, measured = divide(dataset, np.array([3]), 1000)

    assert chosen.tolist() == measured.tolist() == [3]
