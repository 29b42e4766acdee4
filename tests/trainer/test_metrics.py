import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import ConfigError
from trainer.errors import MetricError
from trainer.metrics import json_f1, json_valid, open_metric

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', 1),
        ('{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.5),
        ('{"a": 1}', '{"a": 1, "b": 2, "c": 3}', 0.5),
        ('{"a": "1"}', '{"a": 1}', 0),
        ('{"a": {"b": 1}}', '{"a": {"c": 1}}', 0),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 1),
        ('{"a": [1, 1]}', '{"a": [1]}', 2 / 3),
        ("{}", "{}", 1),
        ("null", "null", 1),
        ('{"a": 1', '{"a": 1}', 0),
        (" yes ", "yes", 1),
        ("no", "yes", 0),
    ],
)
def test_f1_counts_fields_that_are_the_same(answer: str, reference: str, value: float) -> None:
    assert json_f1("", answer, reference) == pytest.approx(value)


@given(JSON, JSON)
def test_f1_is_symmetric_and_between_0_and_1(one: object, other: object) -> None:
    first, second = json.dumps(one), json.dumps(other)
    assert json_f1("", first, first) == 1
    assert 0 <= json_f1("", first, second) == json_f1("", second, first) <= 1


def test_what_json_is() -> None:
    assert json_valid("", '{"a": 1}', "") == 1
    assert json_valid("", "null", "") == 1
    assert json_valid("", '{"a": 1', "") == 0
    assert json_valid("", "[" * 100_000, "") == 0


def test_a_users_function_is_found_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "def same(prompt, answer, reference):\n    return prompt + answer == reference\n"
        "def wild(prompt, answer, reference):\n    return 7\n"
        "def broken(prompt, answer, reference):\n    return answer.nothing\n"
        "def unknown(prompt, answer, reference):\n    return float('nan')\n"
    )

    assert open_metric(f"{path}:same")("a", "b", "ab") == 1.0
    with pytest.raises(MetricError, match=r"gave 7 for the answer 'b'.* from 0 to 1"):
        open_metric(f"{path}:wild")("a", "b", "ab")
    with pytest.raises(MetricError, match=r"failed on the answer 'b'.*nothing"):
        open_metric(f"{path}:broken")("a", "b", "ab")
    with pytest.raises(MetricError, match="gave nan"):
        open_metric(f"{path}:unknown")("a", "b", "ab")
    assert math.isfinite(open_metric("json_f1")("", "{}", "{}"))


@pytest.mark.parametrize(("value", "expected"), [("np.bool_(True)", 1), ("np.float32(0.25)", 0.25)])
def test_a_users_function_may_give_a_value_of_numpy(
    tmp_path: Path, value: str, expected: float
) -> None:
    path = tmp_path / "own.py"
    path.write_text(f"import numpy as np\ndef f(prompt, answer, reference):\n    return {value}\n")

    assert open_metric(f"{path}:f")("", "", "") == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bleu", "expected one of exact_match, json_valid, json_f1, or your own"),
        ("none.py:f", "none.py is not a Python file"),
        ("own.py:g", "no function 'g'"),
        ("own.txt:f", "own.txt is not a Python file"),
        ("wrong.py:f", "cannot be imported.*SyntaxError"),
    ],
)
def test_a_metric_that_is_not_there_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "own.py").write_text("def f(prompt, answer, reference):\n    return 1\n")
    (tmp_path / "own.txt").write_text("")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    given_name = f"{tmp_path / name}" if ":" in name else name
    with pytest.raises(ConfigError, match=words):
        open_metric(given_name)
