import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_model import make_tiny_model
from tests.trainer.test_course import QUALITY, point
from trainer.course import Course, Point
from trainer.guard import EntropyGuard


def look(step: int, ratio: float, kl: float, exact: float = 0.0) -> Point:
    quality = replace(QUALITY, entropy_ratio=ratio, exact_match=exact, kl_to_teacher_nats=kl)
    return replace(point(step, 0.0, kl), quality=quality)


@pytest.mark.parametrize(
    ("start", "healthy", "broken"), [(1.2, 0.61, 0.59), (0.7, 0.61, 0.59), (0.5, 0.31, 0.29)]
)
def test_the_floor_is_a_share_of_the_teacher_s_entropy_or_of_the_start(
    start: float, healthy: float, broken: float
) -> None:
    guard = EntropyGuard.of(replace(QUALITY, entropy_ratio=start))

    assert not guard.is_broken(replace(QUALITY, entropy_ratio=healthy))
    assert guard.is_broken(replace(QUALITY, entropy_ratio=broken))


def test_weights_that_are_too_sure_rank_last_and_right_answers_count_nothing() -> None:
    points = [look(1, 0.9, 0.5, 0.9), look(2, 0.8, 0.3), look(3, 0.5, 0.1)]

    assert EntropyGuard(0.6).choice(points).step == 2


@pytest.mark.parametrize(
    ("looks", "step", "words"),
    [
        ([look(1, 0.9, 0.5), look(2, 0.8, 0.6)], 1, None),
        ([look(1, 0.9, 0.5), look(2, 0.5, 0.1)], 1, "after step 2 of 9.*0.50.*after step 1"),
        ([look(1, 0.5, 0.1)], 0, "after step 1 of 9.*those with which it began"),
    ],
)
def test_the_best_healthy_weights_are_kept_or_those_of_the_start(
    tmp_path: Path, looks: list[Point], step: int, words: str | None
) -> None:
    guard, folder = EntropyGuard(0.6), make_tiny_model(tmp_path / "student")
    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = {name: torch.full_like(p, 0.0) for name, p in student.named_parameters()}
    course = Course(tmp_path / "course", choice=guard.choice)
    for one in looks:
        torch.nn.init.constant_(student.lm_head.weight, float(one.step))
        course.add(student, one)

    best_step, said = guard.settle(course, student, start, 9)

    assert best_step == step
    assert student.lm_head.weight.unique().tolist() == [float(step)]
    assert (said is None) == (words is None)
    assert re.search(words or "^$", said or "")
