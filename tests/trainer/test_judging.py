from pathlib import Path

import pytest

from trainer.judging import Verdict, function_judge


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("np.bool_(True)", Verdict(is_accepted=True)),
        ("np.False_", Verdict(is_accepted=False, reason="the judge said no")),
        ("np.float32(0.75)", Verdict(is_accepted=True, score=0.75)),
    ],
)
async def test_a_function_may_judge_by_a_value_of_numpy(
    tmp_path: Path, value: str, verdict: Verdict
) -> None:
    path = tmp_path / "judge.py"
    path.write_text(f"import numpy as np\ndef judge(messages, answer):\n    return {value}\n")

    assert await function_judge(f"{path}:judge")([], "an answer") == verdict
