"""The student that a run starts from, and whether the log fits it."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from capture.errors import ConfigError
from trainer.config import TrainerConfig
from trainer.dataset import Dataset, Ints
from trainer.errors import DatasetError
from trainer.reduction import Reduction
from trainer.student import count_parameters, open_student, open_teacher


def make_student(
    config: TrainerConfig, dataset: Dataset, rows: Ints, report: Callable[[str], None]
) -> tuple[PreTrainedModel, int]:
    """Read the student to start from, or cut it out of its teacher.

    Args:
        config: Of the run.
        dataset: Of the run.
        rows: Examples whose text may decide what a cut keeps.
        report: Called with a few words before each slow part.

    Returns:
        The student in float32, and how many parameters its teacher has.

    Raises:
        ModelError: If a folder holds no model, or none that fits.
        ConfigError: If the wanted cut cannot be had.
    """
    device = device_of(config.device)
    report("reading the teacher")
    teacher = open_teacher(config.teacher, device)
    if config.student is not None:
        student = open_student(config.student, config.teacher, device)
    else:
        student = Reduction(teacher, dataset, rows, config.seed, report).run(config.cut)
    return student, count_parameters(teacher)


def device_of(name: str) -> torch.device:
    """Where the models run.

    Raises:
        ConfigError: If there is no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("[trainer] device is 'cuda', but torch finds none; use 'cpu'")
    return torch.device(name)


def check_fits(dataset: Dataset, student: PreTrainedModel) -> None:
    """Refuse rows that the student has no position or no embedding for.

    Raises:
        DatasetError: If there are some.
    """
    context, longest = student.config.max_position_embeddings, int(dataset.lengths.max())
    if longest > context:
        raise DatasetError(
            f"the longest example has {longest} tokens, the student takes {context}: leave long "
            "ones out with `where`, such as "
            f'where = "len(prompt_ids) + len(completion_ids) <= {context}"'
        )
    columns = (dataset.prompt_ids, dataset.completion_ids, dataset.topk_ids)
    largest = max(int(column.values.max()) for column in columns)
    if largest >= student.config.vocab_size:
        raise DatasetError(
            f"the log holds token id {largest}, the student's vocabulary ends at "
            f"{student.config.vocab_size - 1}: choose a student with the teacher's vocabulary"
        )
