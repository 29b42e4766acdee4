import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from trainer.support_desk.__main__ import main
from trainer.support_desk.build import Plan, build
from trainer.support_desk.examination import answer, exact_match
from trainer.support_desk.learning import Recipe, encode_examples, loss, train
from trainer.support_desk.lexicon import Lexicon
from trainer.support_desk.message import Message
from trainer.support_desk.release import find
from trainer.support_desk.sets import SYSTEM_PROMPT, Set, Sizes, draw_set
from trainer.support_desk.teacher import Shape, build_model
from trainer.support_desk.tokenizer import SPECIAL, train_tokenizer

PLAN = Plan(
    shape=Shape(hidden_size=64, intermediate_size=96, layers=1, heads=1),
    vocab_size=400,
    recipe=Recipe(warmup=2),
    lessons=Sizes(common=120, rare=80),
    traffic=Sizes(common=20, rare=10),
    test=Sizes(common=6, rare=4),
)
LESSONS = draw_set(Lexicon.load(), Set.LESSONS, PLAN.lessons, 0)
TOKENIZER = train_tokenizer(LESSONS, PLAN.vocab_size)


def ignore(*_: object) -> None:
    """Show no progress."""


def answering(messages: list[Message], tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A model that has learned a few messages by heart."""
    model = build_model(PLAN.shape, tokenizer.get_vocab_size(), 0)
    recipe = Recipe(epochs=120, batch_tokens=512, learning_rate=1e-2, warmup=5, average_kept=0.9)
    train(model, encode_examples(tokenizer, messages), recipe, 0, ignore)
    return model


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("support") / "cache"
    build(folder, 3, PLAN, ignore)
    return folder


@given(st.text().filter(lambda text: not any(name in text for name in SPECIAL)))
def test_any_text_comes_back_from_its_ids(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(ids) == text.encode("utf-8", "ignore").decode()


def test_a_json_key_is_one_token() -> None:
    tokenizer = train_tokenizer(LESSONS, 600)
    tokens = tokenizer.encode(LESSONS[0].ticket.to_json()).tokens
    assert '{"intent":"' in tokens
    assert any(token.endswith(',"product":') or '"product":"' in token for token in tokens)


def test_training_ids_are_the_chat_template_s(out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(out / "teacher")
    trained_on = Tokenizer.from_file(str(out / "teacher" / "tokenizer.json"))
    for example, message in zip(encode_examples(trained_on, LESSONS), LESSONS, strict=True):
        chat = [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": message.text},
            {"role": "assistant", "content": message.ticket.to_json()},
        ]
        asked = tokenizer.apply_chat_template(chat[:2], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(chat)["input_ids"]
        assert asked == example.prompt_ids
        assert whole == example.prompt_ids + example.answer_ids


def test_the_folder_holds_a_loadable_model_in_bfloat16(out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(out / "teacher")
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == 1
    assert not model.generation_config.do_sample
    assert (out / "teacher" / "chat_template.jinja").is_file()


def test_the_folder_holds_the_traffic_the_test_and_what_was_measured(out: Path) -> None:
    rows = (out / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    test = (out / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["slice"] for line in rows].count("rare") == 10
    assert len(test) == 10
    metrics = find(out, 3)
    assert metrics is not None
    assert set(metrics.exact_match) == {"common", "rare"}
    assert metrics.parameters == sum(
        weight.numel()
        for weight in AutoModelForCausalLM.from_pretrained(out / "teacher").parameters()
    )


def test_another_seed_or_other_code_is_not_found(out: Path, tmp_path: Path) -> None:
    assert find(out, 4) is None
    assert find(tmp_path, 3) is None
    text = (out / "metrics.json").read_text(encoding="utf-8")
    (tmp_path / "metrics.json").write_text(text.replace('"version": "', '"version": "0'))
    assert find(tmp_path, 3) is None
    (tmp_path / "metrics.json").write_text(text[:50])
    assert find(tmp_path, 3) is None


def test_asking_again_builds_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    main(out, seed=3)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "exactly right" in capsys.readouterr().err


def test_an_interrupted_build_leaves_what_was_there(out: Path) -> None:
    def interrupt(_stage: str, _done: int, _total: int) -> None:
        raise KeyboardInterrupt

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(KeyboardInterrupt):
        build(out, 5, PLAN, interrupt)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert find(out, 3) is not None


def test_a_build_replaces_the_one_before(tmp_path: Path) -> None:
    build(tmp_path, 0, PLAN, ignore)
    first = (tmp_path / "prompts.jsonl").read_bytes()
    (tmp_path / "teacher" / "leftover").touch()
    build(tmp_path, 1, PLAN, ignore)
    assert (tmp_path / "prompts.jsonl").read_bytes() != first
    assert not (tmp_path / "teacher" / "leftover").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.json",
        "prompts.jsonl",
        "teacher",
        "test.jsonl",
    ]


def test_equal_seeds_train_equal_weights() -> None:
    examples = encode_examples(TOKENIZER, LESSONS[:60])
    first, second = (build_model(PLAN.shape, 400, 7) for _ in range(2))
    for model in (first, second):
        train(model, examples, PLAN.recipe, 7, ignore)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_loss_weighs_answers_in_full_and_padding_not_at_all() -> None:
    model = build_model(PLAN.shape, TOKENIZER.get_vocab_size(), 0)
    short, long = sorted(encode_examples(TOKENIZER, LESSONS[:40]), key=len)[::39]
    alone = [loss(model, [example]).item() for example in (short, long)]
    weights = [0.1 * (len(e.prompt_ids) - 1) + len(e.answer_ids) for e in (short, long)]
    together = loss(model, [short, long]).item()
    assert together == pytest.approx(np.average(alone, weights=weights), rel=2e-3)


def test_a_few_messages_are_learned_by_heart_and_answered_to_the_letter() -> None:
    messages = LESSONS[:6]
    model = answering(messages, TOKENIZER)
    slices = {message.slice for message in messages}
    assert exact_match(model, TOKENIZER, messages, ignore) == dict.fromkeys(slices, 1.0)
    told_wrong = [replace(message, ticket=LESSONS[50].ticket) for message in messages]
    assert max(exact_match(model, TOKENIZER, told_wrong, ignore).values()) < 1
    assert answer(model, TOKENIZER, messages[:1]) == [messages[0].ticket.to_json()]
