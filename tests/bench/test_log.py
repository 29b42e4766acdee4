import json
from pathlib import Path

import numpy as np
import pytest

from tests.bench.formats import BUDGET, RECOMMENDED
from tests.bench.log import main
from tests.bench.teacher import FLATTER, SERVED, Traffic, answers, probabilities
from tests.support.log_folders import filled
from tests.support.log_rows import exchange_row, logit_row


def test_the_benchmark_measures_every_layout(tmp_path: Path) -> None:
    out = tmp_path / "bench" / "log.json"

    main(["--tokens", "2000", "--out", str(out)])

    found = json.loads(out.read_text(encoding="utf-8"))
    sizes = found["bytes_per_token"]
    assert sizes["retort"] < sizes["nested_lists"] < sizes["json"]
    assert (sizes["distillkit_recommended"], sizes["distillkit_budget"]) == (344, 127)
    assert sum(found["bytes_per_token_by_column"].values()) < sizes["retort"]
    assert 0 < found["kl_stored_nats"] < 1e-6
    assert found["kl_stored_nats"] < found["kl_full_nats"] < 0.1
    assert 0 < found["max_logprob_error_nats"] < 1e-4
    assert found["read_mtokens_per_second"] > 0
    assert found["source"].startswith("generated")


def test_a_real_logs_tokens_are_measured_too(tmp_path: Path) -> None:
    config = filled(tmp_path / "real", [exchange_row("a")], [logit_row("a", sizes=(2, 1, 3))])
    out = tmp_path / "log.json"

    main(["--tokens", "500", "--out", str(out), "--log", str(config.log)])

    found = json.loads(out.read_text(encoding="utf-8"))["log"]
    assert (found["tokens"], found["mean_k"]) == (3, 2.0)


def test_generated_traffic_is_as_sure_as_measured_teachers() -> None:
    found = list(answers(SERVED, 20_000))

    sure = np.concatenate([one.is_sure for one in found]).mean()
    outside = np.concatenate([one.outside for one in found]).mean()
    assert sure == pytest.approx(0.88, abs=0.01)
    assert outside == pytest.approx(0.005, abs=0.0015)


@pytest.mark.parametrize("traffic", [SERVED, FLATTER])
def test_generated_distributions_are_ordered_and_leave_a_tail(traffic: Traffic) -> None:
    probs = probabilities(np.random.default_rng(0), traffic, 500)
    assert (np.diff(probs, axis=1) <= 0).all()
    assert (probs.sum(1) < 1).all()


def test_distillkits_formula_gives_its_published_sizes() -> None:
    assert [RECOMMENDED.bytes_per_token(v) for v in (65_536, 128_256, 151_936)] == [312, 328, 344]
    assert [BUDGET.bytes_per_token(v) for v in (65_536, 128_256, 151_936)] == [114, 121, 127]
