"""A redacted exchange leaves no distributions, whichever of its two rows comes first."""

import tempfile
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture import commit
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.errors import LogError
from capture.forgotten import forget, forgotten
from capture.log import Log, query
from capture.rewrite import compact
from capture.rows import ExchangeRow, encode_exchanges
from capture.verify import Verification, verify
from capture.writer import Spool, SpoolLimits
from tests.support.log_folders import config_in, folder_of, spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row


def marked(exchange_id: str) -> ExchangeRow:
    return replace(exchange_row(exchange_id), capture="redacted")


def ids(config: CaptureConfig, table: str) -> list[str]:
    with Log(config.log).connect() as connection:
        rows = query(connection, f"from {table} order by exchange_id")
    return [str(name) for name in rows["exchange_id"].to_pylist()]


def assert_balanced(found: Verification, **dropped: int) -> None:
    assert found.problems == []
    logits = found.tables["logits"]
    assert logits.dropped == Counter(dropped)
    assert logits.started == logits.committed + logits.dropped.total() + logits.in_flight


def test_distributions_that_come_with_their_marked_exchange_are_dropped(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_exchanges(config, marked("a"), exchange_row("b"))
    spool_logits(config, logit_row("a"), logit_row("b"))

    report = Committer(config).commit()

    assert (report.rows, report.dropped) == ({"exchanges": 2, "logits": 1}, {"redacted": 1})
    assert (ids(config, "exchanges"), ids(config, "logits")) == (["a", "b"], ["b"])
    assert_balanced(verify(config), redacted=1)


def test_distributions_that_come_later_are_dropped(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_exchanges(config, marked("a"))
    Committer(config).commit()
    spool_logits(config, logit_row("a"))

    assert Committer(config).commit().dropped == {"redacted": 1}
    assert ids(config, "logits") == []
    assert_balanced(verify(config), redacted=1)
    assert Committer(config).commit().segments == 0


def test_distributions_that_came_first_are_taken_back(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    for name in "abc":
        spool_logits(config, logit_row(name))
        Committer(config).commit()
    compact(config.log)
    before = Log(config.log).versions()
    spool_exchanges(config, marked("a"), exchange_row("b"))
    Committer(config).commit()

    assert ids(config, "logits") == ["b", "c"]
    files = list((folder_of(config) / "logits").glob("day=*/*.parquet"))
    assert len(files) == 3  # the joined one without a, and those of b and c from before
    assert before.logits == 4
    assert_balanced(verify(config), redacted=1)


def test_a_mark_in_a_segment_that_is_still_open_counts(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool = Spool(
        config.spool, "exchanges", encode_exchanges, limits=SpoolLimits(segment_seconds=600)
    )
    spool.account.start()
    written = threading.Event()
    spool.offer(marked("a"), 1000, written=written.set)
    assert written.wait(30)
    spool_logits(config, logit_row("a"))

    assert Committer(config).commit().dropped == {"redacted": 1}
    spool.close()
    Committer(config).commit()
    assert_balanced(verify(config), redacted=1)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["exchange", "logits"]), st.integers(0, 3), st.booleans()),
        max_size=8,
    )
)
@settings(max_examples=15)
def test_the_law_holds_in_any_order(steps: list[tuple[str, int, bool]]) -> None:
    """Exchanges 0 and 1 are marked; each row is committed at once, or with later ones."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_in(Path(folder))
        exchanges, logits = set(), set()
        for kind, number, at_once in steps:
            name = str(number)
            if kind == "exchange" and name not in exchanges:
                exchanges.add(name)
                spool_exchanges(config, marked(name) if number < 2 else exchange_row(name))
            elif kind == "logits" and name not in logits:
                logits.add(name)
                spool_logits(config, logit_row(name))
            if at_once:
                Committer(config).commit()
        Committer(config).commit()
        withheld = logits & exchanges & {"0", "1"}

        assert set(ids(config, "logits")) == logits - withheld
        found = verify(config)
        assert found.problems == []
        assert found.tables["logits"].committed == len(logits - withheld)
        assert found.tables["logits"].dropped.total() == len(withheld)


def test_dying_before_the_exchange_is_committed_loses_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path)
    spool_logits(config, logit_row("a"))
    Committer(config).commit()
    spool_exchanges(config, marked("a"))

    def fail(*_: object) -> None:
        raise LogError("the store failed")

    with monkeypatch.context() as failing:
        failing.setattr(commit, "apply", fail)
        with pytest.raises(LogError):
            Committer(config).commit()
    assert ids(config, "logits") == []
    Committer(config).commit()
    assert ids(config, "exchanges") == ["a"]
    assert_balanced(verify(config), redacted=1)


def test_a_list_survives_a_line_cut_short(tmp_path: Path) -> None:
    forget(tmp_path, "erased", ["a", "b"])
    path = tmp_path / "forgotten" / "erased.ids"
    path.write_text(path.read_text(encoding="utf-8") + "c" * 9, encoding="utf-8")
    forget(tmp_path, "erased", ["d"])

    assert forgotten(tmp_path, "erased").to_pylist() == ["a", "b", "c" * 9, "d"]
    assert forgotten(tmp_path, "redacted").to_pylist() == []
