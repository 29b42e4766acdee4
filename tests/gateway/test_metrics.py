from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from capture.account import Account
from gateway.metrics import Metrics


def test_counts_of_several_writers_are_one_series_per_table_and_reason(tmp_path: Path) -> None:
    for writer in ("a", "b"):
        account = Account(tmp_path, "logits", writer)
        account.start()
        account.drop("store")
        account.save()
    (tmp_path / "logits-c.account.json").write_text("{")  # cut short by a power loss

    text = generate_latest(Metrics.create(tmp_path).registry).decode()

    found = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("retort_capture_") and sample.labels.get("table")
    ]
    assert found == [
        ("retort_capture_started_total", {"table": "logits"}, 2.0),
        ("retort_capture_written_total", {"table": "logits"}, 0.0),
        ("retort_capture_dropped_total", {"table": "logits", "reason": "store"}, 2.0),
    ]
