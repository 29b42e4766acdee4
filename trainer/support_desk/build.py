"""Build the demo's folder: draw the messages, train the teacher, examine it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from trainer.precision import in_fast_dtype
from trainer.support_desk.examination import exact_match
from trainer.support_desk.folder import write_teacher
from trainer.support_desk.learning import Recipe, encode_examples, train
from trainer.support_desk.lexicon import Lexicon
from trainer.support_desk.message import Message
from trainer.support_desk.release import Metrics, replacing, version, write_metrics
from trainer.support_desk.sets import Set, Sizes, draw_set, row
from trainer.support_desk.teacher import Shape, build_model
from trainer.support_desk.tokenizer import train_tokenizer

TOKENIZER_MESSAGES = 8000
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    shape: Shape
    vocab_size: int
    recipe: Recipe
    lessons: Sizes
    traffic: Sizes
    test: Sizes


# Under two minutes on two idle cores.
STANDARD = Plan(
    shape=Shape(hidden_size=192, intermediate_size=512, layers=5, heads=3),
    vocab_size=1280,
    recipe=Recipe(),
    lessons=Sizes(common=10500, rare=3500),
    traffic=Sizes(common=2250, rare=750),
    test=Sizes(common=500, rare=400),
)


def build(out: Path, seed: int, plan: Plan, advance: Advance) -> Metrics:
    """Fill a folder; nothing in it changes before all of it is ready.

    Args:
        out: Made if it is missing; what an earlier build left in it is replaced.
        seed: Of the messages, the weights and the order of training.
        plan: How much.
        advance: Called with (stage, steps done, steps) as the work goes on.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    lexicon = Lexicon.load()
    with replacing(out) as fresh:
        test = draw_set(lexicon, Set.TEST, plan.test, seed)
        _write_rows(fresh / "test.jsonl", test)
        _write_rows(fresh / "prompts.jsonl", draw_set(lexicon, Set.TRAFFIC, plan.traffic, seed))
        lessons = draw_set(lexicon, Set.LESSONS, plan.lessons, seed)

        tokenizer = train_tokenizer(lessons[:TOKENIZER_MESSAGES], plan.vocab_size)
        model = build_model(plan.shape, tokenizer.get_vocab_size(), seed)
        examples = encode_examples(tokenizer, lessons)
        train_tokens = train(model, examples, plan.recipe, seed, partial(advance, "training"))
        write_teacher(fresh / "teacher", model, tokenizer)
        metrics = Metrics(
            version=version(),
            seed=seed,
            exact_match=exact_match(
                in_fast_dtype(model), tokenizer, test, partial(advance, "examination")
            ),
            parameters=model.num_parameters(),
            train_tokens=train_tokens,
            threads=torch.get_num_threads(),
            seconds=round(time.perf_counter() - started, 1),
            cpu_seconds=round(time.process_time() - cpu_started, 1),
        )
        write_metrics(fresh, metrics)
    return metrics


def _write_rows(path: Path, messages: Sequence[Message]) -> None:
    path.write_text("".join(f"{row(message)}\n" for message in messages), encoding="utf-8")
