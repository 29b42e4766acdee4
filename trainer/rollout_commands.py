"""``retort distill rollouts``: a student's own answers, scored by its teacher, as a log."""

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from capture.revision import tokenizer_hash
from trainer.answering import Answerer, Sampling, end_ids, sample_answers
from trainer.config import TrainerConfig
from trainer.onpolicy import (
    Asked,
    Crew,
    check_teacher,
    roll_out,
    snapshot_of,
    take_folder,
    wanted_rollouts,
)
from trainer.options import ConfigOption, JsonOption, KeyOption, given_config, open_log
from trainer.precision import open_device
from trainer.rollout_log import Models, RolloutLog
from trainer.scores import check_scores
from trainer.scoring import Scorer, score_answers
from trainer.screen import Screen
from trainer.student import check_tokenizer, open_student, open_teacher

if TYPE_CHECKING:
    from trainer.remote import Engine


@dataclass(frozen=True, slots=True)
class Made:
    """What a call did.

    Attributes:
        folder: Of the log of rollouts.
        student_revision: Whose answers it holds.
        prompts: Answered there, held-out ones included.
        added: By this call.
        completion_tokens: Added by this call.
        seconds: It took, reading included.
    """

    folder: str
    student_revision: str
    prompts: int
    added: int
    completion_tokens: int
    seconds: float


def rollouts(  # noqa: PLR0913  one option each
    student: Annotated[Path, typer.Option(help="Checkpoint that answers.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that becomes their log.")],
    config_path: ConfigOption = None,
    *,
    teacher_url: Annotated[
        str | None, typer.Option(help="vLLM that serves the teacher; else its folder is loaded.")
    ] = None,
    student_url: Annotated[
        str | None, typer.Option(help="vLLM that serves the student; else its folder is loaded.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="How many to learn from; default: all.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the answers.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 256,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a student answer the log's prompts and its teacher score them, to learn from these.

    Run again, it goes on where it was interrupted.
    """
    config = given_config(config_path).model_copy(update={"student": student})
    open_log(config)
    sampling = Sampling(temperature, max_new_tokens)
    started = time.perf_counter()
    with Screen.opened(0) as screen:
        screen.say("reading the log")
        snapshot = snapshot_of(config, out)
        asked = Asked.read(config, snapshot)
        rows = asked.chosen(prompts)
        wanted = wanted_rollouts(config, student, asked, snapshot, sampling)
        take_folder(out, wanted)
        screen.say("reading the models")
        crew = Crew(
            _answerer(config, student, sampling, _engine(student_url, api_key)),
            _scorer(config, _engine(teacher_url, api_key)),
            partial(_tokenizer(student).batch_decode, skip_special_tokens=True),
        )
        check_teacher(asked, crew.score)
        models = Models(
            student.resolve().name,
            wanted.student_revision,
            wanted.teacher_revision,
            tokenizer_hash(config.teacher),
        )
        screen.say("answering and scoring")
        screen.expect(len(rows))
        with RolloutLog(out, models, sampling) as rollout_log:
            added = roll_out(asked, rows, crew, rollout_log, screen.advance)
    seconds = time.perf_counter() - started
    made = Made(str(out), wanted.student_revision, len(rows), *added, seconds)
    if as_json:
        typer.echo(json.dumps(asdict(made)))
        return
    typer.echo(f"{out}  ({made.prompts:,} prompts, {made.added:,} of them answered just now)")
    typer.echo(
        f'refine with log = "{out.resolve()}", student = "{student.resolve()}", '
        f'loss = "mixed_kl", heldout_fraction = {config.heldout_fraction} and no `where`; '
        f"retort log verify -c {out / 'retort.toml'} checks the rows"
    )


def _engine(url: str | None, api_key: str | None) -> "Engine | None":
    if url is None:
        return None
    # The client of OpenAI takes seconds to load, and most runs need none.
    from trainer.endpoint import only_model, open_endpoint  # noqa: PLC0415
    from trainer.remote import Engine  # noqa: PLC0415

    client = open_endpoint(url, api_key)
    return Engine(client, url, only_model(client, url))


def _answerer(
    config: TrainerConfig, student: Path, sampling: Sampling, engine: "Engine | None"
) -> Answerer:
    if engine is not None:
        check_tokenizer(student, config.teacher)
        return partial(engine.answers, sampling)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = open_student(student, config.teacher, open_device(config.device)).eval()
    return partial(sample_answers, model, end_ids(student, _tokenizer(student)), sampling)


def _scorer(config: TrainerConfig, engine: "Engine | None") -> Scorer:
    if engine is not None:
        return engine.scores
    teacher = open_teacher(config.teacher, open_device(config.device)).eval()
    check_scores(teacher)
    return partial(score_answers, teacher)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
