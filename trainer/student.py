"""The models: opening their folders, and running one on a batch.

Shape suffixes: B examples, T tokens, N completion tokens, D width, V vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from capture.revision import tokenizer_hash
from trainer.config import OWN_TOKENS, SHARED_VOCABULARY, TrainerConfig
from trainer.errors import ModelError
from trainer.packing import Batch
from trainer.precision import in_fast_dtype


def completion_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return what the output projection takes to predict each completion token.

    Returns:
        ``hidden_ND``, in the order of ``batch.targets``; the projection, the widest layer of a
        small model, has to run on those positions only.
    """
    hidden_BTD = model.model(batch.token_ids_BT, use_cache=False).last_hidden_state
    hidden_ND: Tensor = hidden_BTD.flatten(0, 1)[batch.predicts_N]
    return hidden_ND


def open_teacher(folder: Path, device: torch.device) -> PreTrainedModel:
    """Load a model as it is stored; on a CPU that has no bfloat16, computing in float32.

    Raises:
        ModelError: If the folder holds no model.
    """
    return in_fast_dtype(open_stored(folder).to(device))


def open_stored(folder: Path) -> PreTrainedModel:
    """Map a model as it is stored; its weights are read from their files when they are used.

    Raises:
        ModelError: If the folder holds no model.
    """
    return _open(folder, "auto")


def open_student(folder: Path, teacher: Path, device: torch.device) -> PreTrainedModel:
    """Load a model to go on training, in float32.

    Raises:
        ModelError: If the folder holds no model, or its tokenizer is not the teacher's.
    """
    check_tokenizer(folder, teacher)
    return open_trainable(folder, device)


def open_trainable(folder: Path, device: torch.device) -> PreTrainedModel:
    """Load a model with whatever tokenizer, in float32.

    Raises:
        ModelError: If the folder holds no model.
    """
    return _open(folder, torch.float32).to(device)


def tokenizer_folder(config: TrainerConfig) -> Path:
    """The folder of whose tokenizer the student reads and writes with: the teacher's, or its own.

    Raises:
        ModelError: If it is its own, and the loss needs the teacher's.
    """
    student, teacher = config.student, config.teacher
    expected = tokenizer_hash(teacher)
    is_own = student is not None and not config.from_scratch
    found = tokenizer_hash(student) if student is not None and is_own else expected
    if found == expected and config.loss == SHARED_VOCABULARY:
        raise ModelError(
            f"the student has the teacher's tokenizer ({expected}), and {config.loss} is for one "
            'that has not: use loss = "forward_kl"'
        )
    if student is None or found == expected:
        return teacher
    if config.loss not in OWN_TOKENS:
        raise ModelError(
            f"{student}: tokenizer {found}, expected the teacher's ({expected}) with loss = "
            f'"{config.loss}": choose a student with the same tokenizer, leave `student` out to '
            'cut the teacher, or learn the words alone, with loss = "behaviour_cloning"'
        )
    return student


def check_tokenizer(folder: Path, teacher: Path) -> None:
    """See that a student reads and writes text as its teacher does.

    Raises:
        ModelError: If it does not.
    """
    found, expected = tokenizer_hash(folder), tokenizer_hash(teacher)
    if found != expected:
        raise ModelError(
            f"{folder}: tokenizer {found}, expected the teacher's ({expected}): "
            "choose a student with the same tokenizer, or leave `student` out to cut the teacher"
        )


def new_student(folder: Path, seed: int, device: torch.device) -> PreTrainedModel:
    """Make a model of random weights, in float32, as a folder's ``config.json`` describes it.

    Raises:
        ModelError: If it describes none.
    """
    torch.manual_seed(seed)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: no model that transformers can make: {error}") from error


def remove_dropout(model: PreTrainedModel) -> None:
    """Let a model compute in training what it computes in service; its config says so too.

    Its draws are no part of what an interrupted run saves.
    """
    for owner in (model.config, *model.modules()):
        is_dropout = isinstance(owner, nn.Dropout)
        for name, value in list(vars(owner).items()):
            if isinstance(value, float) and ("drop" in name or (is_dropout and name == "p")):
                setattr(owner, name, 0.0)


def weights_of(student: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of a student's weights."""
    return {name: p.detach().clone() for name, p in student.named_parameters()}


def give(student: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a student."""
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(weights[name])


def count_parameters(model: PreTrainedModel) -> int:
    """Return how many weights there are, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _open(folder: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; give a Hugging Face model folder")
    disable_progress_bar()  # it would tear our own
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: not a model that transformers can load: {error}") from error
