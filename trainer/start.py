"""The student that a run starts from."""

from collections.abc import Callable

from transformers import PreTrainedModel

from trainer.config import TrainerConfig
from trainer.material import Material
from trainer.precision import open_device
from trainer.reduction import Reduction
from trainer.scores import check_scores
from trainer.student import (
    count_parameters,
    new_student,
    open_teacher,
    open_trainable,
    remove_dropout,
)


def make_student(
    config: TrainerConfig, material: Material, report: Callable[[str], None]
) -> tuple[PreTrainedModel, int]:
    """Read the student to start from, or cut it out of its teacher.

    Args:
        config: Of the run.
        material: Whose text may decide what a cut keeps.
        report: Called with a few words before each slow part.

    Returns:
        The student in float32, and how many parameters its teacher has.

    Raises:
        ModelError: If a folder holds no model, or none that fits or can be trained.
        ConfigError: If the wanted cut cannot be had.
    """
    device = open_device(config.device)
    report("reading the teacher")
    teacher = open_teacher(config.teacher, device)
    if config.student is not None and config.from_scratch:
        student = new_student(config.student, config.seed, device)
    elif config.student is not None:
        student = open_trainable(config.student, device)
    else:
        given = (teacher, material.dataset, material.train_rows, config.seed, report)
        student = Reduction(*given).run(config.cut)
    remove_dropout(student)
    check_scores(student)
    return student, count_parameters(teacher)
