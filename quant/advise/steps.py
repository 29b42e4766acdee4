"""The next command of each path (pure)."""

from dataclasses import dataclass

from quant.advise.files import Comparison
from quant.advise.measured import Measurements
from quant.advise.paths import PathName
from quant.compare.cascade import config_line

PLAN = "retort distill plan -c run.toml --pilot --json > plan.json"


@dataclass(frozen=True, slots=True)
class Names:
    """What the commands are about.

    Attributes:
        teacher: Folder of the teacher.
        config: The configuration file.
        route: Of the traffic.
        is_quantized_first: Whether the teacher is, before there is a student.
    """

    teacher: str
    config: str
    route: str
    is_quantized_first: bool


def next_command(path: PathName, found: Measurements, names: Names) -> str:
    """What to run next on a path; nothing for staying."""
    if path == "quantize":
        return _quantizing(found, names)
    if path == "distill":
        return _distilling(found, names)
    if path == "none":
        return ""
    return _both(found, names)


def _quantizing(found: Measurements, names: Names) -> str:
    compared = found.comparisons.get("quantized")
    if compared is not None:
        return _after(compared, names)
    if found.scheme is not None:
        made = f"retort quantize {names.teacher} --scheme {found.scheme} --out bundle"
        return f"{made} -c {names.config}"
    return f"retort quantize matrix {names.teacher} -c {names.config}"


def _distilling(found: Measurements, names: Names) -> str:
    compared = found.comparisons.get("student")
    if compared is not None:
        return _after(compared, names)
    return "retort distill -c run.toml" if found.has_pilot else PLAN


def _both(found: Measurements, names: Names) -> str:
    last, student = (found.comparisons.get(kind) for kind in ("quantized student", "student"))
    if last is not None:
        return _after(last, names)
    if student is not None and student.word == "non-inferior":
        return f"retort quantize matrix {student.models.student.folder} -c {names.config}"
    first = found.comparisons.get("quantized")
    is_first_done = first is not None and first.word != "not enough data"
    if names.is_quantized_first and not is_first_done:
        return _quantizing(found, names)
    return _distilling(found, names)


def _after(compared: Comparison, names: Names) -> str:
    """What a verdict asks for."""
    student = compared.models.student.folder
    if compared.word == "non-inferior":
        return f"retort rollout start {student} --route {names.route} -c {names.config}"
    if compared.net is not None and compared.kind != "quantized":
        return (
            f'model = "{student}", {config_line(compared.thresholds)} in '
            f"[gateway.routes.{names.route}]; retort serve -c {names.config}"
        )
    if compared.word == "inferior":
        is_quantized = compared.kind == "quantized"
        matrix = f"retort quantize matrix {names.teacher} -c {names.config}"
        return matrix if is_quantized else PLAN
    rows = compared.slices[0].rows + (compared.verdict.overall.more_rows or 0)
    both = f"{compared.models.teacher.folder} {student}"
    return f"retort compare {both} --rows {rows} -c {names.config}"
