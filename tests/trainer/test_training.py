from pathlib import Path

import pytest

from tests.support.distill_run import make_home, write_config
from trainer import training
from trainer.config import load
from trainer.course import Course, Point
from trainer.loop import Step
from trainer.part import prepare
from trainer.progress import Done, Progress


class Clock:
    """Stands still but for what is said to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


class SlowCourse(Course):
    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(folder)
        self._clock = clock

    def add(self, student: object, point: Point) -> None:
        self._clock.now += 100
        super().add(student, point)


def test_seconds_hold_the_wait_for_a_step_and_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(write_config(make_home(tmp_path), student='"teacher"', steps="10"))
    run, clock = prepare(config, lambda _: None), Clock()
    trained, _ = run._training()
    monkeypatch.setattr(training, "time", clock)

    def wait(_step: Step) -> None:
        clock.now += 1

    course = SlowCourse(tmp_path / "course", clock)
    progress = Progress(tmp_path / "progress", "a run")
    done = trained.run(trained.learner(), course, Done(), wait, progress)

    assert done.seconds == 10
    assert [point.seconds for point in course.points] == list(range(1, 11))
