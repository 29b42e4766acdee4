import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from capture.errors import ConfigError
from gateway.demo.loop import choose_prompts
from gateway.demo.prompts import load_prompts, popular, split_heldout


def row(text: str, answer: str | None = None, **more: str) -> str:
    messages = [{"role": "user", "content": text}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return json.dumps({"messages": messages, **more})


def written(folder: Path, *rows: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_an_answer_is_what_is_right_and_not_part_of_the_prompt(tmp_path: Path) -> None:
    path = written(tmp_path, row("a", "b", slice="common"), row("c", slice="rare"))

    first, second = load_prompts(path)

    assert (first.chat, first.answer) == ([{"role": "user", "content": "a"}], "b")
    assert (second.answer, second.slice) == (None, "rare")


def test_forms_without_a_label_are_told_apart_by_their_words(tmp_path: Path) -> None:
    rows = [row(f"please play song {n % 3}") for n in range(16)]
    odd = [row("zyzzyva quokka"), row("xylophone")]

    prompts = load_prompts(written(tmp_path, *rows, *odd))

    assert [prompt.slice for prompt in prompts[-2:]] == ["rare", "rare"]
    assert sum(prompt.slice == "rare" for prompt in prompts) < 9


def test_the_same_prompt_is_always_on_the_same_side(tmp_path: Path) -> None:
    prompts = load_prompts(written(tmp_path, *(row(str(n % 50)) for n in range(200))))

    traffic, heldout = split_heldout(prompts, 0.3)

    assert len(traffic) + len(heldout) == 200
    assert heldout
    assert not {p.messages for p in traffic} & {p.messages for p in heldout}


def test_some_prompts_are_far_more_popular_than_others(tmp_path: Path) -> None:
    prompts = load_prompts(written(tmp_path, *(row(str(n)) for n in range(100))))

    drawn = list(itertools.islice(popular(prompts, seed=1), 5000))

    counts = sorted(Counter(drawn).values(), reverse=True)
    assert sum(counts[:10]) > 2 * sum(counts[-10:])
    assert drawn == list(itertools.islice(popular(prompts, seed=1), 5000))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"messages": 3}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": []}',
        '{"messages": [{"role": "user", "content": null}]}',
        '{"messages": [{"role": "assistant", "content": "yes"}]}',
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:2: expected"):
        load_prompts(written(tmp_path, row("a"), line))


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="no prompts"):
        load_prompts(written(tmp_path))


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match="not UTF-8"):
        load_prompts(path)


def test_a_line_separator_within_a_text_and_an_empty_line_are_no_lines(tmp_path: Path) -> None:
    line = '{"messages": [{"role": "user", "content": "one\u2028two"}]}'

    (prompt,) = load_prompts(written(tmp_path, line, "", "  "))

    assert prompt.messages == (("user", "one\u2028two"),)


def test_too_few_prompts_to_hold_some_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected some of each"):
        choose_prompts(written(tmp_path, row("a")), None)
