"""What an advice assumes: every figure with its default, its reason, and its origin."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from capture.errors import ConfigError

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

SET = "--set"
ASSUMED = "assumed"
OF_STUDENT = ("chance_in_narrow", "chance_in_broad", "escalated_share")  # likewise of a quantized
FREE = 0.0  # a price of nothing: the teacher runs on GPUs of one's own


class Assumptions(BaseModel):
    """Everything that decides; money in one currency, US dollars by default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    requests_per_month: Annotated[NotNegative, Field(description="read from the log")]
    prompt_tokens: Annotated[NotNegative, Field(description="mean of a request; from the log")]
    completion_tokens: Annotated[NotNegative, Field(description="mean of a request; from the log")]
    peak_over_mean: Annotated[
        float, Field(ge=1, description="tokens of the busiest hour over the mean hour's")
    ] = 3.0

    price_per_million_prompt_tokens: Annotated[
        NotNegative, Field(description="of a teacher that is paid by the token; 0: it is not")
    ] = FREE
    price_per_million_completion_tokens: Annotated[NotNegative, Field(description="likewise")] = (
        FREE
    )
    gpu_price_per_hour: Annotated[
        NotNegative, Field(description="an H100 on demand; lists of 2026 ask 2 to 5 dollars")
    ] = 2.5
    gpu_memory_gb: Annotated[Positive, Field(description="of an H100, by its data sheet")] = 80.0
    gpu_unit: Annotated[
        Positive, Field(description="smallest part of a GPU that can be paid for alone")
    ] = 1.0
    gpus_per_server: Annotated[
        Positive, Field(description="most that one model is spread over: an HGX server's")
    ] = 8.0
    memory_over_weights: Annotated[
        float, Field(ge=1, description="memory that serving takes, over that of the weights")
    ] = 1.3
    utilisation: Annotated[
        float,
        Field(gt=0, le=1, description="of GPUs in the busiest hour: queues stay short"),
    ] = 0.6
    prompt_token_cost: Annotated[
        NotNegative, Field(description="time to read a token over that to write one, many at once")
    ] = 0.1
    teacher_gb: Annotated[Positive, Field(description="of its weights: 8 billion of 16 bits")] = (
        16.0
    )
    teacher_tokens_per_second: Annotated[
        Positive,
        Field(
            description="written per GPU; 40,200 over teacher_gb: half of an H100's 3,350 GB/s "
            "(data sheet), 24 answers at once"
        ),
    ]

    quantized_size: Annotated[
        Positive, Field(description="8 bits instead of 16; over the teacher's")
    ] = 0.5
    quantized_speed: Annotated[
        Positive, Field(description="over the teacher's; vLLM's documentation: up to 1.6 for FP8")
    ] = 1.3
    chance_of_quantized: Annotated[Share, Field(description="that a scheme keeps the quality")] = (
        0.9
    )
    quantize_days: Annotated[NotNegative, Field(description="until it serves")] = 2.0
    quantize_engineer_days: Annotated[NotNegative, Field(description="of work")] = 2.0
    quantize_compute: Annotated[NotNegative, Field(description="money, all attempts")] = 20.0

    student_size: Annotated[Positive, Field(description="over the teacher's")] = 0.125
    student_speed: Annotated[
        Positive, Field(description="over the teacher's; half of what its size would allow")
    ] = 4.0
    narrow_seen_share: Annotated[
        Share, Field(description="a domain is narrow if so many pairs of words were there before")
    ] = 0.7
    chance_in_narrow: Annotated[
        Share, Field(description="that a student is good enough in a narrow domain")
    ] = 0.8
    chance_in_broad: Annotated[
        Share, Field(description="in a broad one, or one of which nothing is known")
    ] = 0.3
    escalated_share: Annotated[
        Share, Field(description="of requests that the teacher answers for its student; cascade")
    ] = 0.0
    distill_days: Annotated[NotNegative, Field(description="until it serves")] = 20.0
    failed_iterations: Annotated[
        NotNegative, Field(description="runs before the one that is used")
    ] = 2.0
    iteration_engineer_days: Annotated[NotNegative, Field(description="of work, each run")] = 3.0
    training_cost: Annotated[
        NotNegative, Field(description="money, each run: a day of one GPU at 2.5 an hour")
    ] = 60.0
    wished_quality: Annotated[
        Share, Field(description="of a pilot's metric, that a student has to reach; [quant] floor")
    ] = 0.9

    final_size: Annotated[
        Positive, Field(description="quantized student over the teacher: both shares multiplied")
    ]
    final_speed: Annotated[Positive, Field(description="likewise, both speeds multiplied")]
    final_chance_in_narrow: Annotated[
        Share, Field(description="that a quantized student is good enough; as the student")
    ]
    final_chance_in_broad: Annotated[Share, Field(description="likewise")]
    final_escalated_share: Annotated[
        Share, Field(description="that the teacher answers for it; as for the student")
    ]

    engineer_price_per_day: Annotated[NotNegative, Field(description="wages and overhead")] = 800.0
    horizon_months: Annotated[
        Positive, Field(description="over which savings count; models are replaced after that")
    ] = 12.0
    needed_within_days: Annotated[
        NotNegative, Field(description="a path that is not wholly there by then is left out")
    ] = 365.0
    minimum_saving_per_month: Annotated[
        NotNegative, Field(description="less is not worth anybody's attention")
    ] = 500.0


@dataclass(frozen=True, slots=True)
class Resolved:
    """Values with where each is from.

    Attributes:
        values: All of them.
        origins: By name: ``assumed``, ``--set``, or what measured it.
    """

    values: Assumptions
    origins: Mapping[str, str]

    def reason(self, name: str) -> str:
        """Why a value is what it is, for people."""
        description = Assumptions.model_fields[name].description or ""
        origin = self.origins[name]
        return f"{origin}: {description}" if origin == ASSUMED else origin


@dataclass(frozen=True, slots=True)
class Measured:
    """A value that replaces an assumption.

    Attributes:
        value: In the assumption's unit.
        source: Who measured it.
    """

    value: float
    source: str


def parse_settings(words: Sequence[str]) -> dict[str, float]:
    """Read ``NAME=VALUE`` each.

    Raises:
        ConfigError: If one is not of that form, no assumption, no number, or there twice.
    """
    found: dict[str, float] = {}
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if not equals:
            raise ConfigError(f"{SET} {word}: expected NAME=VALUE, such as gpu_price_per_hour=2")
        if name not in Assumptions.model_fields:
            near = difflib.get_close_matches(name, Assumptions.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "`retort advise` lists all of them"
            raise ConfigError(f"{SET} {word}: no assumption is called {name!r}; {hint}")
        if name in found:
            raise ConfigError(f"{SET} {word}: {name} is set twice; leave out one of them")
        try:
            found[name] = float(text)
        except ValueError as error:
            raise ConfigError(f"{SET} {word}: {text!r} is no number") from error
    return found


def resolve(measured: Mapping[str, Measured], given: Mapping[str, float]) -> Resolved:
    """Take what was given, else what was measured, else what is assumed.

    Args:
        measured: By name; what a request is, at least.
        given: By name.

    Raises:
        ConfigError: If a value is out of its range.
    """
    known = {name: each.value for name, each in measured.items()} | dict(given)
    defaults = {name: field.default for name, field in Assumptions.model_fields.items()}
    of = {**defaults, **known}
    derived = {
        "teacher_tokens_per_second": 40_200 / (of["teacher_gb"] or 1.0),
        "final_size": of["student_size"] * of["quantized_size"],
        "final_speed": of["student_speed"] * of["quantized_speed"],
        **{f"final_{name}": of[name] for name in OF_STUDENT},
    }
    try:
        values = Assumptions.model_validate({**derived, **known})
    except ValidationError as error:
        wrong = [item for item in error.errors() if item["loc"][0] in known]
        said = [_explain(item, {} if item["loc"][0] in given else measured) for item in wrong]
        raise ConfigError("; ".join(said)) from error
    origins = dict.fromkeys(Assumptions.model_fields, ASSUMED)
    origins |= {name: each.source for name, each in measured.items()}
    return Resolved(values, origins | dict.fromkeys(given, SET))


def _explain(item: ErrorDetails, measured: Mapping[str, Measured]) -> str:
    name = str(item["loc"][0])
    said = item["msg"][0].lower() + item["msg"][1:]
    source = measured[name].source if name in measured else SET
    return f"{source}: {name}={item['input']}: {said}"
