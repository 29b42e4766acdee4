"""What the demo found: ``report.json`` for programs, ``report.html`` for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import jinja2

from gateway.demo import figures
from gateway.demo.rollouts import Tried
from gateway.demo.throughput import Comparison
from gateway.demo.traffic import Outcome

WINDOW = 50
COMPARED = ("margin", "verdict", "slices")  # its page has the rest
Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Model:
    """One model's size, quality and speed.

    Attributes:
        exact_match_common: Share of right answers to held-out common forms, None without answers.
        exact_match_rare: The same for rare forms.
        tokens_per_second: Generated tokens over wall time, one engine thread.
        agreement_with_teacher: Share of held-out prompts answered as the teacher does.
        kl_to_teacher_nats: Mean KL(teacher || model) per token on held-out rows of the log.
    """

    parameters: int
    size_bytes: int
    exact_match_common: float | None
    exact_match_rare: float | None
    tokens_per_second: float
    agreement_with_teacher: float
    kl_to_teacher_nats: float | None = None

    def with_parameters(self, parameters: int) -> "Model":
        """A quantized model has its original's parameters; its file holds them packed."""
        return replace(self, parameters=parameters)


@dataclass(slots=True)
class Report:
    """Everything measured in one demo; ``compared`` is what ``retort compare --json`` printed."""

    teacher: str
    prompts: str
    outcomes: Sequence[Outcome]
    verified: Json
    stats: Json
    comparison: Comparison
    models: Mapping[str, Model]
    good: Tried
    bad: Tried
    compared: Json = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def document(self) -> Json:
        """The report as JSON."""
        everyone = [*self.outcomes, *self.good.outcomes, *self.bad.outcomes]
        return {
            "teacher": self.teacher,
            "prompts": self.prompts,
            "requests": len(everyone),
            "failed_requests": sum(outcome.failure is not None for outcome in everyone),
            "capture": {
                "complete_fraction": self.verified["complete_fraction"],
                "verified": self.verified,
                "tokens": self.stats["tokens"],
                "bytes_per_token": self.stats["bytes_per_token"],
                "throughput_ratio": self.comparison.ratio,
                "tokens_per_second_on": self.comparison.on,
                "tokens_per_second_off": self.comparison.off,
            },
            "models": {name: _fields(model) for name, model in self.models.items()},
            "compare": {name: self.compared[name] for name in COMPARED if name in self.compared},
            "rollout": {"good": _tried(self.good), "bad": _tried(self.bad)},
            "seconds": dict(self.seconds),
        }


def write_report(report: Report, folder: Path) -> Path:
    """Write both files and return the page's path."""
    document = report.document()
    (folder / "report.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    source = files("gateway.demo").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(report=document, figures=plots(report))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def plots(report: Report) -> dict[str, str]:
    """Every plot of the page, by name."""
    names, models = list(report.models), list(report.models.values())
    shown = {
        "cost": figures.cost(
            names,
            [model.size_bytes / 1e6 for model in models],
            [model.tokens_per_second for model in models],
        ),
        "capture": figures.capture(report.comparison.on, report.comparison.off),
        "good": figures.answered(answered(report.good.outcomes)),
        "bad": figures.answered(answered(report.bad.outcomes)),
    }
    if models[0].exact_match_common is not None:
        common = [model.exact_match_common for model in models]
        rare = [model.exact_match_rare for model in models]
        shown["quality"] = figures.quality(names, common, rare)
    return shown


def answered(outcomes: Sequence[Outcome]) -> dict[str, list[tuple[int, float]]]:
    """Each deployment's share of the last ``WINDOW`` answers, request by request."""
    names = list(dict.fromkeys(outcome.deployment or "failed" for outcome in outcomes))
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for end in range(WINDOW, len(outcomes) + 1, max(1, len(outcomes) // 200)):
        window = [outcome.deployment or "failed" for outcome in outcomes[end - WINDOW : end]]
        for name in names:
            curves[name].append((end, window.count(name) / WINDOW))
    return curves


def _fields(model: Model) -> Json:
    return {name: getattr(model, name) for name in Model.__dataclass_fields__}


def _tried(tried: Tried) -> Json:
    return {
        "state": tried.state,
        "requests": len(tried.outcomes),
        "failures": tried.failures,
        "clients_affected": tried.clients_affected,
        "history": tried.history,
    }
