"""How good an answer is beside the teacher's: measures of text, each from 0 to 1."""

import json
from collections import Counter
from collections.abc import Callable, Iterator

from pydantic import JsonValue

from capture.errors import ConfigError
from trainer.errors import MetricError
from trainer.own_code import load_function, python_value

Metric = Callable[[str, str, str], float]
"""Takes the prompt as the model saw it, the student's answer and the teacher's."""

LM_EVAL = "lm_eval:"  # before the name of a task; see trainer.benchmark
EXACT_MATCH = "exact_match"  # needs no generation: see trainer.evaluation


def json_valid(_prompt: str, answer: str, _reference: str) -> float:
    """Whether the answer is JSON: 1 or 0."""
    return 0.0 if _parsed(answer) is None else 1.0


def json_f1(_prompt: str, answer: str, reference: str) -> float:
    """F1 of the answer's fields, each a path and a value, against the teacher's.

    Where the teacher's answer is not JSON, whether both are the same text.
    """
    wanted, found = _parsed(reference), _parsed(answer)
    if wanted is None:
        return float(answer.strip() == reference.strip())
    if found is None:
        return 0.0
    ours, theirs = Counter(_fields(found[0])), Counter(_fields(wanted[0]))
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


METRICS: dict[str, Metric] = {"json_valid": json_valid, "json_f1": json_f1}


def open_metric(name: str, option: str = "[trainer].metric") -> Metric:
    """Find a measure by its name, or a user's own as ``file.py:function``.

    Args:
        name: Of ``METRICS``, or a file and a function of prompt, answer and reference in it, that
            returns a number from 0 to 1.
        option: What named it, for messages.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        known = ", ".join([EXACT_MATCH, *METRICS])
        raise ConfigError(
            f"{option} is {name!r}: expected one of {known}, or your own function of "
            "prompt, answer and reference as 'file.py:function'"
        )
    found = load_function(name, option)

    def checked(prompt: str, answer: str, reference: str) -> float:
        try:
            value = python_value(found(prompt, answer, reference))
        except Exception as error:  # it is not our code
            raise MetricError(
                f"metric {name} failed on the answer {answer!r}: {error!r}"
            ) from error
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise MetricError(
                f"metric {name} gave {value!r} for the answer {answer!r}, expected a number from 0 "
                "to 1"
            )
        return float(value)

    return checked


def _parsed(text: str) -> tuple[JsonValue] | None:
    """What a text says as JSON, which may be null; None if it is not JSON."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def _fields(value: JsonValue, path: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a JSON value with its path; the places of a list count as one path."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _fields(inner, f"{path}.{key}")
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _fields(inner, f"{path}[]")
    else:
        yield path, json.dumps(value)
