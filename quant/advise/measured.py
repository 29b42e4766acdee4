"""What other commands have measured, as values that replace assumptions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from capture.errors import ConfigError
from quant.advise.assumptions import OF_STUDENT, Measured
from quant.advise.files import Comparison, Kind, Matrix, Plan, Range, read_file
from quant.pareto import is_measured, recommended
from quant.source import weights_size

GB = 1e9
PLAIN = "none"  # the scheme of a model as it is
RATIOS = ("quality_ratio", "quality_ratio_worst")
SURE = {"non-inferior": 1.0, "inferior": 0.0}  # chances, by verdict
PILOT_SHARES = (0.05, 0.5, 0.95)  # of what is likely that lies below low, median, high


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a model is, as somebody measured it.

    Attributes:
        low: Of the range, a share.
        high: Of the range.
        what: Is measured, and how sure the range is.
        source: The file.
    """

    low: float
    high: float
    what: str
    source: str


@dataclass(frozen=True, slots=True)
class Files:
    """Where measurements lie.

    Attributes:
        matrix: Of ``retort quantize matrix``.
        comparisons: Of ``retort compare``; of each kind the last counts.
        plan: Of ``retort distill plan --json``.
        teacher: Folder of the teacher, for the size of its weights.
    """

    matrix: Path | None = None
    comparisons: Sequence[Path] = ()
    plan: Path | None = None
    teacher: Path | None = None


@dataclass(slots=True)
class Measurements:
    """All that was found.

    Attributes:
        values: By the assumption that they replace.
        qualities: By what was measured.
        comparisons: Likewise.
        scheme: That a matrix picks for the teacher.
        has_pilot: Whether short runs were tried.
        warnings: What could not be used.
    """

    values: dict[str, Measured] = field(default_factory=dict)
    qualities: dict[Kind, Quality] = field(default_factory=dict)
    comparisons: dict[Kind, Comparison] = field(default_factory=dict)
    scheme: str | None = None
    has_pilot: bool = False
    warnings: list[str] = field(default_factory=list)

    def take(self, source: str, **values: float | None) -> None:
        """Replace assumptions; what is None is not measured."""
        found = {name: Measured(v, source) for name, v in values.items() if v is not None}
        self.values |= found


def read_measurements(
    files: Files, revisions: Sequence[str], wished_quality: float
) -> Measurements:
    """Read everything, the surest last, which so replaces the others.

    Args:
        files: Where.
        revisions: Of the models that answered in the log.
        wished_quality: That a pilot's student has to reach.

    Raises:
        ConfigError: If a file cannot be read, or is not what it should be.
    """
    found = Measurements()
    if files.teacher is not None:
        _take_teacher(found, files.teacher)
    if files.matrix is not None:
        _take_matrix(found, read_file(files.matrix, Matrix), str(files.matrix))
    if files.plan is not None:
        _take_plan(found, read_file(files.plan, Plan), str(files.plan), wished_quality)
    last: dict[Kind, tuple[Comparison, str]] = {}
    for path in files.comparisons:
        compared = read_file(path, Comparison)
        teacher = compared.models.teacher
        if revisions and teacher.revision not in revisions:
            found.warnings.append(
                f"{path} is left out: its teacher is {teacher.revision}, the log's answers are of "
                f"{', '.join(revisions)}"
            )
        else:
            last.pop(compared.kind, None)
            last[compared.kind] = compared, str(path)
    for compared, source in last.values():
        _take_comparison(found, compared, source)
    return found


def chance_of(wish: float, predicted: Range) -> float:
    """That a value which is predicted turns out at least as wished (pure).

    Between the prediction's three points the chance changes evenly; beyond them it stays.
    """
    points = (predicted.low, predicted.median, predicted.high)
    return float(1 - np.interp(wish, points, PILOT_SHARES))


def _take_teacher(found: Measurements, folder: Path) -> None:
    size = weights_size(folder)
    if not size:
        raise ConfigError(f"--teacher {folder}: no safetensors there; give a model folder")
    found.take(f"{folder}/*.safetensors", teacher_gb=size / GB)


def _take_matrix(found: Measurements, matrix: Matrix, source: str) -> None:
    of_teacher = [row for row in matrix.rows if row["model"] == "teacher"]
    plain = next((row for row in of_teacher if row["scheme"] == PLAIN), None)
    if plain is None:
        found.warnings.append(f"{source}: no teacher in it; `retort quantize matrix TEACHER`")
        return
    found.take(source, teacher_gb=plain["size_bytes"] / GB)
    tried = [row for row in of_teacher if row["scheme"] != PLAIN and row["made"]]
    rows = [row for row in tried if is_measured(row) and None not in map(row.get, RATIOS)]
    pick = recommended(rows, matrix.floor)
    if pick is None:
        found.take(source, chance_of_quantized=0.0 if rows else None)
        return
    found.scheme = str(pick["scheme"])
    where = f"{source}, {found.scheme} on {matrix.target}"
    found.take(
        where,
        quantized_size=pick["size_ratio"],
        quantized_speed=pick["tokens_per_second_ratio"],
        chance_of_quantized=1.0,
    )
    what = "of the teacher's own right answers, from the worst slice to all rows"
    low, high = sorted(pick[name] for name in RATIOS)
    found.qualities["quantized"] = Quality(low, high, what, where)


def _take_plan(found: Measurements, plan: Plan, source: str, wish: float) -> None:
    found.take(
        source,
        student_size=plan.student_parameters / plan.teacher_parameters,
        training_cost=plan.cost,
    )
    if plan.cost is None:
        found.warnings.append(f"{source} names no cost; plan with --gpu and --price-per-hour")
    if plan.pilot is not None:
        found.has_pilot = True
        metric = plan.pilot.metric
        chance = chance_of(wish, metric)
        found.take(f"{source}, pilot", chance_in_narrow=chance, chance_in_broad=chance)
        what = "of the run's metric, as short runs predict it, nine times in ten"
        found.qualities["student"] = Quality(metric.low, metric.high, what, source)


def _take_comparison(found: Measurements, compared: Comparison, source: str) -> None:
    size, speed = _take_sizes(found, compared, source), compared.decode_ratio
    if compared.kind == "quantized":
        sure = SURE.get(compared.word)
        found.take(source, quantized_size=size, quantized_speed=speed, chance_of_quantized=sure)
    elif compared.kind == "student":
        found.take(source, student_size=size, student_speed=speed)
        _take_chance(found, compared, source, "")
    else:
        found.take(source, final_size=size, final_speed=speed)
        _take_chance(found, compared, source, "final_")
    everything = compared.slices[0]
    ends = [everything.teacher + each for each in (everything.low, everything.high)]
    low, high = (min(1.0, max(0.0, end)) for end in ends)
    what = f"{compared.metric} over {everything.rows} held-out rows, 95 %; {compared.word}"
    if compared.net is not None and compared.kind != "quantized":
        low, high = max(0.0, everything.teacher + compared.net.low), compared.net.quality
        what += f"; with its teacher answering {compared.net.escalated:.1%}: at least, and measured"
    found.qualities[compared.kind] = Quality(low, high, what, source)
    found.comparisons[compared.kind] = compared


def _take_sizes(found: Measurements, compared: Comparison, source: str) -> float | None:
    """The teacher's; returns what is beside it over that, None where one of the two is unknown."""
    models = compared.models
    sizes = {"teacher": models.teacher.size_bytes, "student": models.student.size_bytes}
    for name in (each for each, size in sizes.items() if not size):
        found.warnings.append(
            f"{source} has no size of its {name}, whose weights are no safetensors: it stays as "
            "it was; give --teacher or --set"
        )
    found.take(source, teacher_gb=sizes["teacher"] / GB or None)
    return sizes["student"] / sizes["teacher"] if all(sizes.values()) else None


def _take_chance(found: Measurements, compared: Comparison, source: str, prefix: str) -> None:
    """What a student is worth, and what its teacher has to answer; as assumed where in doubt."""
    sure = SURE.get(compared.word)
    share = None if sure is None else 0.0
    if compared.net is not None:
        # The threshold was found over all rows: a slice that is worse alone may stay so.
        worst = compared.verdict.worst_slice
        sure = None if worst is not None and worst.word == "inferior" else 1.0
        share, source = compared.net.escalated, f"{source}, cascade"
    values = dict(zip(OF_STUDENT, (sure, sure, share), strict=True))
    found.take(source, **{f"{prefix}{name}": value for name, value in values.items()})
