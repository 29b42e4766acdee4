"""Both models behind real engines: what each answers, what it says of the log, how fast it is."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from capture.engine import Engine, EngineSpec
from capture.errors import EngineError
from capture.host import SMALL_ENGINE_ENV
from capture.revision import context_length
from quant.compare.answers import Answer, ask
from quant.compare.forced import TOP, Forced, forced
from quant.config import QuantConfig
from quant.errors import ComparisonError
from quant.screen import Screen
from quant.speed import DECODED, PREFILLED, Speed, compare_speeds
from trainer.dataset import Dataset

MORE_TOKENS = 16  # than the longest logged answer: room to show that an answer does not end


@dataclass(frozen=True, slots=True)
class Side:
    """One model's part.

    Attributes:
        folder: Of the model.
        answers: To every prompt.
        forced: At the logged tokens.
        speed: Beside the other's.
    """

    folder: Path
    answers: list[Answer]
    forced: Forced
    speed: Speed


def measure(
    folders: Mapping[str, Path],
    dataset: Dataset,
    config: QuantConfig,
    out: Path,
    screen: Screen,
    *,
    is_confidence_asked: bool = False,
) -> dict[str, Side]:
    """Start an engine per model, ask each of them, time them in turn, and end them.

    Args:
        folders: Of the models, by what they are called.
        dataset: What they are asked.
        config: Flags, environment and patience.
        out: Folder for what the engines print; removed if all went well.
        screen: Shows the progress.
        is_confidence_asked: Whether answers tell how sure the models were.

    Raises:
        ComparisonError: If a model's context is too short for any answer.
        EngineError: If a model cannot be served; with the end of its engine's log.
    """
    answers: dict[str, list[Answer]] = {}
    looks: dict[str, Forced] = {}
    with ExitStack() as stack:
        engines = []
        for name, folder in folders.items():
            screen.say(f"starting vLLM on the {name}")
            spec = spec_of(folder, name, dataset, config, out)
            engine = stack.enter_context(Engine.start(spec))
            engine.wait_ready(config.engine_timeout_seconds)
            engines.append(engine)
            answers[name], looks[name] = _ask(
                engine, name, dataset, screen, is_confidence_asked=is_confidence_asked
            )
        screen.say("timing both in turn")
        size = min(vocabulary(folder) for folder in folders.values())
        try:
            speeds = compare_speeds(engines, size)
        except httpx.HTTPError as error:
            raise EngineError(f"an engine failed while it was timed: {error!r}") from error
    for engine in engines:
        engine.spec.log_path.unlink()
    return {
        name: Side(folder, answers[name], looks[name], speed)
        for (name, folder), speed in zip(folders.items(), speeds, strict=True)
    }


def spec_of(
    folder: Path, name: str, dataset: Dataset, config: QuantConfig, out: Path
) -> EngineSpec:
    """What to start: a context for the longest row, and as many log-probabilities as are read."""
    top = str(min(TOP, vocabulary(folder)))
    args = ("--max-model-len", str(context_of(folder, dataset)), "--max-logprobs", top)
    env = {**SMALL_ENGINE_ENV, "OMP_NUM_THREADS": str(config.threads), **config.engine_env}
    log_path = out / f"{name}.engine.log"
    return EngineSpec(folder, name, log_path, (*args, *config.engine_args), env)


def context_of(folder: Path, dataset: Dataset) -> int:
    """Tokens that the engine of a model takes: for the longest row, if the model has as many."""
    longest = int(dataset.prompt_ids.lengths.max()) + max_tokens(dataset)
    wanted = max(longest, PREFILLED + DECODED)
    return min(wanted, context_length(folder) or wanted)


def max_tokens(dataset: Dataset) -> int:
    """Of an answer: a little more than the longest in the log."""
    return int(dataset.completion_ids.lengths.max()) + MORE_TOKENS


def vocabulary(folder: Path) -> int:
    """Token ids that a model has.

    Raises:
        ComparisonError: If its configuration does not say.
    """
    found = _config(folder).get("vocab_size")
    if found is None:
        raise ComparisonError(f"{folder}/config.json: no vocab_size; give a text model's folder")
    return int(found)


def _config(folder: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _ask(
    engine: Engine, name: str, dataset: Dataset, screen: Screen, *, is_confidence_asked: bool
) -> tuple[list[Answer], Forced]:
    context, rows = context_of(engine.spec.model, dataset), len(dataset)
    prompts = [dataset.prompt_ids.row(row).tolist() for row in range(rows)]
    screen.say(f"the {name} answers {rows} prompts", rows)
    answers = ask(
        *(engine, prompts, max_tokens(dataset), context, screen.advance),
        is_confidence_asked=is_confidence_asked,
    )
    screen.say(f"the {name} reads {rows} logged answers", rows)
    top = min(TOP, vocabulary(engine.spec.model))
    return answers, forced(engine, dataset, top, context, screen.advance)
