"""What is read of the files that other commands write."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from capture.errors import ConfigError

Document = TypeVar("Document", bound=BaseModel)
Word = Literal["non-inferior", "inferior", "not enough data"]
Kind = Literal["quantized", "student", "quantized student"]


class Part(BaseModel):
    """A part of a file that others write; what is not read here is left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Matrix(Part):
    """``matrix.json``."""

    target: str
    floor: float
    rows: list[dict[str, Any]]


class Model(Part):
    """One of the models of ``compare.json``."""

    folder: str
    revision: str
    size_bytes: int
    scheme: str | None
    parent_revision: str | None


class Models(Part):
    """Both."""

    teacher: Model
    student: Model


class Answer(Part):
    """A verdict."""

    word: Word
    more_rows: int | None


class Verdicts(Part):
    """Both."""

    overall: Answer
    worst_slice: Answer | None


class SliceRow(Part):
    """Scores of some rows; the first slice is all of them."""

    rows: int
    teacher: float
    low: float
    high: float


class Handed(Part):
    """What a cascade's threshold does."""

    threshold: float
    escalated: float
    quality: float
    low: float


class Curve(Part):
    """A cascade by one signal."""

    chosen: Handed | None


class Comparison(Part):
    """``compare.json``."""

    models: Models
    decode_ratio: float
    metric: str
    verdict: Verdicts
    slices: list[SliceRow]
    cascade: dict[str, Curve] | None = None

    @property
    def kind(self) -> Kind:
        """What is beside the teacher."""
        student = self.models.student
        if student.scheme is None:
            return "student"
        is_teacher = student.parent_revision == self.models.teacher.revision
        return "quantized" if is_teacher else "quantized student"

    @property
    def net(self) -> Handed | None:
        """What a route's cascade makes good enough that is not so alone."""
        curve = (self.cascade or {}).get("mean_logprob")
        return None if curve is None or self.word == "non-inferior" else curve.chosen

    @property
    def thresholds(self) -> dict[str, float]:
        """Of a route's cascade, by signal."""
        chosen = {signal: curve.chosen for signal, curve in (self.cascade or {}).items()}
        return {signal: each.threshold for signal, each in chosen.items() if each is not None}

    @property
    def word(self) -> Word:
        """The verdict over all rows, or in the worst slice if that is worse."""
        words = [each.word for each in (self.verdict.overall, self.verdict.worst_slice) if each]
        return "inferior" if "inferior" in words else self.verdict.overall.word


class Range(Part):
    """What a pilot predicts."""

    median: float
    low: float
    high: float


class Pilot(Part):
    """What a plan's pilot says."""

    metric: Range


class Plan(Part):
    """What ``retort distill plan --json`` prints."""

    student_parameters: int
    teacher_parameters: int
    cost: float | None
    pilot: Pilot | None = None


def read_file(path: Path, model: type[Document]) -> Document:
    """Read a JSON file into its model.

    Raises:
        ConfigError: If it cannot be read, or is not what it should be.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: {key}: {first['msg']}; make the file again, with this version"
        ) from error
