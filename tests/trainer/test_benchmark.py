"""A task of lm-evaluation-harness as metric; the harness itself is no dependency."""

import importlib.util
import json
from pathlib import Path

import pytest

from capture.errors import ConfigError
from tests.support.distill_run import distill, make_home, write_config
from trainer.benchmark import first_metric

IS_THERE = importlib.util.find_spec("lm_eval") is not None
TASK = """\
task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["red", "blue"]
doc_to_target: a
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("benchmark"))


def test_the_first_metric_counts_and_no_error() -> None:
    figures = {"alias": "colours", "acc_stderr,none": 0.1, "acc,none": 0.5, "f1,none": 0.7}
    assert first_metric(figures) == 0.5
    assert first_metric({"alias": "colours"}) is None


@pytest.mark.skipif(IS_THERE, reason="lm-eval is installed")
def test_without_the_harness_it_is_said_what_to_install(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"'lm_eval:colours'.*pip install lm-eval.*file\.py"):
        distill(write_config(home, metric='"lm_eval:colours"'))


@pytest.mark.skipif(not IS_THERE, reason="lm-eval is not installed: pip install lm-eval")
@pytest.mark.filterwarnings("default")
def test_a_local_task_chooses_the_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    data = home / "data.jsonl"
    data.write_text("".join(json.dumps({"q": "apple", "a": n % 2}) + "\n" for n in range(6)))
    (home / "colours.yaml").write_text(TASK.format(data=data))
    settings = {"eval_every": "12", "baseline": "false", "eval_rows": "4"}
    path = write_config(home, out='"chosen"', metric='"lm_eval:colours"', **settings)
    metrics = json.loads(distill(path).stdout)

    assert metrics["metric"] == "lm_eval:colours"
    assert metrics["heldout"]["metric"] == 0.5  # whichever it always says
    assert metrics["heldout"]["metric_rows"] == 4
    with pytest.raises(ConfigError, match=r"'lm_eval:shapes'.*'task: shapes'"):
        distill(write_config(home, metric='"lm_eval:shapes"'))
