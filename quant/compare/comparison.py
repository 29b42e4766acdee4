"""Two models asked the same held-out prompts by real engines, and what came of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from py3langid import classify
from transformers import AutoTokenizer

from capture.log import Log
from capture.revision import model_revision
from quant.compare.bootstrap import Span
from quant.compare.cascade import cascade, config_lines
from quant.compare.distances import FILE as TRAINING
from quant.compare.distances import measure_distances
from quant.compare.findings import Document, Findings, Pair, document, judged
from quant.compare.judging import JudgeSpec, check_judge, judge_pairs
from quant.compare.rows import ORIGINS, Choice, Rows, choose_rows
from quant.compare.serving import Side, measure
from quant.compare.slices import LENGTH_GROUPS, Floats, Slice, by_label, by_quantile, entropies
from quant.compare.verdict import Question
from quant.config import QuantConfig
from quant.screen import Screen
from quant.source import weights_size
from quant.topics import name_topics, topics
from trainer.manifest import MANIFEST, Lineage, read_manifest
from trainer.metrics import EXACT_MATCH, Metric, open_metric


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a comparison.

    Attributes:
        rows: Held-out prompts at most.
        margin: How much worse than its teacher a student may be.
        metric: ``exact_match``, another name of ``trainer.metrics`` or ``file.py:function``.
        judge: Who compares the answers; None if nobody does.
        is_cascade: Whether the teacher is tried as the student's safety net.
    """

    rows: int
    margin: float
    metric: str
    judge: JudgeSpec | None
    is_cascade: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a comparison reads and writes.

    Attributes:
        log: Rows to compare on.
        config: The ``[quant]`` table: filter, held-out share, engine.
        out: Folder for ``compare.json``.
        screen: Shows the progress.
    """

    log: Log
    config: QuantConfig
    out: Path
    screen: Screen


def compare_models(teacher: Path, student: Path, wish: Wish, place: Place) -> Document:
    """Compare two model folders on held-out rows of the log and write ``compare.json``.

    Args:
        teacher: The model that answered in the log, or one that was made of it.
        student: Another one with its tokenizer.
        wish: What is asked.
        place: Where.

    Returns:
        What ``compare.json`` holds.

    Raises:
        ComparisonError: If they cannot be compared on this log.
        ConfigError: If the metric or the judge is not there.
        EndpointError: If the judge does not answer, before any work or once all else is written.
        EngineError: If vLLM does not serve one of them.
    """
    screen, config = place.screen, place.config
    metric = None if wish.metric == EXACT_MATCH else open_metric(wish.metric, "--metric")
    if wish.judge is not None:
        check_judge(wish.judge)
    screen.say("reading the log")
    choice = Choice(config.where, wish.rows, config.heldout_fraction)
    rows = choose_rows(place.log, teacher, student, choice)
    place.out.mkdir(parents=True, exist_ok=True)
    folders = {"teacher": teacher, "student": student}
    sides = measure(
        *(folders, rows.dataset, config, place.out, screen), is_confidence_asked=wish.is_cascade
    )
    screen.say("looking at the answers")
    found = _findings(teacher, rows, sides, metric, config.seed)
    # A student cannot do better than give the teacher's answer where that is what is asked.
    question = Question(wish.margin, Span(best=0.0 if metric is None else 1.0), config.seed)
    ratio = sides["student"].speed.decode_over(sides["teacher"].speed)
    content: Document = {
        "models": {name: _model(side) for name, side in sides.items()},
        "decode_ratio": ratio,
        "prefill_ratio": sides["student"].speed.prefill_over(sides["teacher"].speed),
        "log": _origin(rows),
        "metric": wish.metric,
        **document(found, question),
        "cascade": None,
        "cascade_config": [],
        "judge": None,
    }
    if wish.is_cascade:
        distances = measure_distances(place.log, rows, place.out)
        curves = cascade(found, distances, question, ratio)
        lines = config_lines(curves, (place.out / TRAINING).resolve())
        content |= {"cascade": curves, "cascade_config": lines}
    written = _written(content, place.out)
    if wish.judge is not None:
        content["judge"] = _judgement(wish.judge, found.pairs, wish.margin, screen)
        written = _written(content, place.out)
    return written


def slices_of(
    rows: Rows,
    prompts: Sequence[str],
    languages: Sequence[str],
    answer_tokens: Floats,
    seed: int,
) -> list[Slice]:
    """Every slice that has enough rows.

    Args:
        rows: Of the log.
        prompts: Their texts.
        languages: They are written in.
        answer_tokens: Length of the teacher's own answer to each.
        seed: Of grouping by topic.
    """
    groups = topics(rows.dataset.prompt_ids, seed)
    names = name_topics(prompts, groups)
    prompt_tokens = rows.dataset.prompt_ids.lengths.astype(np.float64)
    return [
        *(each for name in ORIGINS for each in by_label(name, rows.origins[name])),
        *by_label("language", languages),
        *by_quantile("prompt length", prompt_tokens, LENGTH_GROUPS, "tokens"),
        *by_quantile("answer length", answer_tokens, LENGTH_GROUPS, "tokens"),
        *by_quantile("rarity", rows.rarity, unit="nats"),
        *by_quantile("teacher's uncertainty", entropies(rows.dataset), unit="nats"),
        *by_label("topic", [names[group] for group in groups.tolist()]),
    ]


def language_of(text: str) -> str:
    """The likeliest language, as a code of ISO 639; of a word or two it is a guess."""
    return str(classify(text)[0])


def _findings(
    teacher: Path, rows: Rows, sides: dict[str, Side], metric: Metric | None, seed: int
) -> Findings:
    ours, theirs = sides["student"], sides["teacher"]
    # With the marks between turns, or the end of one and the beginning of the next are one word.
    prompts = _prompts(teacher, rows, skip_special_tokens=False)
    plain = _prompts(teacher, rows, skip_special_tokens=True)
    answered = zip(rows.exchange_ids, prompts, ours.answers, theirs.answers, strict=True)
    pairs = [Pair(*each) for each in answered]
    lengths = np.array([len(each.token_ids) for each in theirs.answers], np.float64)
    return Findings(
        pairs,
        *_scores(pairs, plain, metric),
        student_forced=ours.forced,
        teacher_forced=theirs.forced,
        slices=slices_of(rows, prompts, [*map(language_of, plain)], lengths, seed),
    )


def _prompts(teacher: Path, rows: Rows, *, skip_special_tokens: bool) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
    ids = (rows.dataset.prompt_ids.row(row).tolist() for row in range(len(rows.dataset)))
    return [tokenizer.decode(each, skip_special_tokens=skip_special_tokens) for each in ids]


def _scores(
    pairs: Sequence[Pair], prompts: Sequence[str], metric: Metric | None
) -> tuple[Floats, Floats]:
    """The student's and the teacher's, both against the teacher's answer.

    Args:
        pairs: Row by row.
        prompts: Their texts as a metric has them in training.
        metric: None for the same text.
    """
    if metric is None:
        is_same = [pair.student.text == pair.teacher.text for pair in pairs]
        return np.array(is_same, np.float64), np.ones(len(pairs))
    answers = [(pair.student.text, pair.teacher.text) for pair in pairs]
    texts = [(prompt, *both) for prompt, both in zip(prompts, answers, strict=True)]
    ours = [metric(prompt, student, teacher) for prompt, student, teacher in texts]
    theirs = [metric(prompt, teacher, teacher) for prompt, _, teacher in texts]
    return np.array(ours, np.float64), np.array(theirs, np.float64)


def _judgement(spec: JudgeSpec, pairs: Sequence[Pair], margin: float, screen: Screen) -> Document:
    screen.say("the judge compares the answers", len(pairs))
    asked = [(each.prompt, each.student.text, each.teacher.text) for each in pairs]
    scores = judge_pairs(spec, asked, screen.advance)
    return {"model": spec.model} | judged(scores, Question(margin))


def _written(content: Document, out: Path) -> Document:
    """What ``compare.json`` holds from now on."""
    found: Document = _without_nan(content)
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    (out / "compare.json").write_text(text, encoding="utf-8")
    return found


def _model(side: Side) -> Document:
    has_manifest = (side.folder / MANIFEST).exists()
    lineage = read_manifest(side.folder).lineage if has_manifest else Lineage()
    return {
        "folder": str(side.folder),
        "revision": model_revision(side.folder),
        "scheme": lineage.scheme,
        "parent_revision": lineage.parent_revision,
        "size_bytes": weights_size(side.folder),
        "memory_bytes": side.speed.memory_bytes,
        "decode_tokens_per_second": float(np.median(side.speed.decode)),
        "prefill_tokens_per_second": float(np.median(side.speed.prefill)),
    }


def _origin(rows: Rows) -> Document:
    return {
        "rows": len(rows.dataset),
        "heldout_prompts": rows.num_heldout,
        "without_room": rows.without_room,
        "heldout_fraction": rows.heldout_fraction,
        "teacher_revision": rows.dataset.model_revision,
        "rows_digest": rows.digest,
        "snapshot": rows.snapshot.model_dump(mode="json"),
    }


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - of JSON
    """None where there is no number, which JSON cannot say otherwise."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
