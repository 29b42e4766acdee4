"""An advice with all that it rests on: traffic, assumptions, measurements, next commands."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from capture.log import Log
from quant.advise.advice import Advice, advise, turning_points
from quant.advise.assumptions import SET, Assumptions, Resolved, resolve
from quant.advise.files import Kind
from quant.advise.measured import Files, Measurements, read_measurements
from quant.advise.paths import PathName, is_quantized_first
from quant.advise.steps import Names, next_command
from quant.advise.traffic import Traffic, read_traffic

KINDS: dict[PathName, Kind] = {
    "quantize": "quantized",
    "distill": "student",
    "both": "quantized student",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a person or a program is told.

    Attributes:
        advice: The answer.
        traffic: What the log holds.
        assumptions: Values with where they are from.
        measurements: What other commands found.
        commands: What comes next, by path.
        turns: Volumes in requests a month at which another path would be recommended.
    """

    advice: Advice
    traffic: Traffic
    assumptions: Resolved
    measurements: Measurements
    commands: Mapping[PathName, str]
    turns: list[tuple[float, PathName]]

    @property
    def warnings(self) -> list[str]:
        """What makes it doubtful."""
        given = {name for name, origin in self.assumptions.origins.items() if origin == SET}
        return [*self.traffic.warnings(given), *self.measurements.warnings]

    def document(self) -> dict[str, object]:
        """The report as JSON has it."""
        values = self.assumptions.values.model_dump()
        return {
            "recommended": self.advice.recommended,
            "reasons": self.advice.reasons,
            "next": self.commands[self.advice.recommended],
            "paths": [
                asdict(path)
                | {"quality": self._quality(path.name)}
                | {"next": self.commands[path.name]}
                for path in self.advice.paths
            ],
            "turning_points": [
                {"requests_per_month": volume, "recommended": name} for volume, name in self.turns
            ],
            "assumptions": {
                name: {"value": value, "from": self.assumptions.origins[name]}
                for name, value in values.items()
            },
            "traffic": asdict(self.traffic) | {"is_narrow": self.advice.is_narrow},
            "warnings": self.warnings,
        }

    def _quality(self, path: PathName) -> dict[str, object] | None:
        quality = self.measurements.qualities.get(KINDS[path]) if path in KINDS else None
        return None if quality is None else asdict(quality)


def make_report(
    log: Log, route: str | None, files: Files, given: Mapping[str, float], config: str
) -> Report:
    """Read the log and the files, and advise.

    Args:
        log: Of the traffic.
        route: Whose; None for the only one.
        files: What was measured.
        given: Assumptions that somebody has set.
        config: Name of the configuration file, for the next commands.

    Raises:
        AdviceError: If the log says too little.
        ConfigError: If a route, a file or an assumption is wrong.
    """
    traffic = read_traffic(log, route)
    wish = given.get("wished_quality", Assumptions.model_fields["wished_quality"].default)
    found = read_measurements(files, traffic.revisions, wish)
    of_log = traffic.measured(given)
    resolved = resolve({**of_log, **found.values}, given)
    of = resolved.values
    advice = advise(of, traffic.seen_share)
    teacher = str(files.teacher or "TEACHER")
    names = Names(teacher, config, traffic.route, is_quantized_first=is_quantized_first(of))
    return Report(
        advice,
        traffic,
        resolved,
        found,
        {path.name: next_command(path.name, found, names) for path in advice.paths},
        turning_points(of, traffic.seen_share),
    )
