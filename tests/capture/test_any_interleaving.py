"""Whatever happens in whatever order, the log holds the promised rows and no others."""

import contextlib
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from capture.balance import Balance
from capture.commit import Committer
from capture.compaction import compact_due
from capture.locks import locked_if_free
from capture.repair import Repairer
from capture.rewrite import compact
from capture.schema import TABLES
from capture.spool import BAD, CLOSED, OPEN, SegmentName, segments
from capture.verify import verify
from tests.support.killed_commit import COMMIT, JOIN, REPAIR, Point
from tests.support.log_folders import config_in
from tests.support.spool_model import LivingWriter, Promised, rows_in_log

NAMES = st.sampled_from(sorted(TABLES))


class Died(BaseException):
    """A process that ends in the middle of what it does."""


def die(*_: object, **__: object) -> None:
    raise Died


@contextlib.contextmanager
def dying(point: Point | None) -> Iterator[None]:
    """End what goes on inside at a point, if it comes there."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Died):
        if point is not None:
            point(patch, die)
        yield


class Capture(RuleBasedStateMachine):
    """A spool and a log, with everything that may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.config = config_in(self.folder)
        self.config.spool.mkdir()
        self.promised = Promised()
        self.writers: dict[str, LivingWriter] = {}
        self.copies: dict[SegmentName, bytes] = {}
        self.num_rows = self.num_writers = 0

    @rule(
        table=NAMES,
        frames=st.lists(st.integers(1, 2), min_size=1, max_size=5),
        then=st.sampled_from(["nothing", "save", "rotate", "end", "crash"]),
    )
    def append(self, table: str, frames: list[int], then: str) -> None:
        if table not in self.writers:
            self.num_writers += 1
            name = f"w{self.num_writers}"
            self.writers[table] = LivingWriter(self.config.spool, table, name, self.promised)
        writer = self.writers[table]
        for size in frames:
            writer.append([str(self.num_rows + i) for i in range(size)])
            self.num_rows += size
        writer.do(then)
        if then in {"end", "crash"}:
            del self.writers[table]

    @precondition(lambda self: bool(self.left_open()))
    @rule(data=st.data())
    def tear(self, data: st.DataObject) -> None:
        name, path = data.draw(st.sampled_from(self.left_open()))
        size = path.stat().st_size
        cut = data.draw(st.integers(0, size))
        with path.open("r+b") as file:
            file.truncate(cut)
        self.promised.damage(name, cut, size)

    @precondition(lambda self: bool(self.at_rest()))
    @rule(data=st.data(), mask=st.integers(1, 255))
    def flip(self, data: st.DataObject, mask: int) -> None:
        name, path = data.draw(st.sampled_from(self.at_rest()))
        start, end = data.draw(st.sampled_from(self.promised.places(name)))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(start, end - 1))
        if at < len(content):
            content[at] ^= mask
            path.write_bytes(content)
            self.promised.damage(name, at, at + 1)

    @precondition(lambda self: bool(segments(self.config.spool, CLOSED)))
    @rule()
    def copy_segments(self) -> None:
        for name, path in segments(self.config.spool, CLOSED):
            self.copies[name] = path.read_bytes()

    @precondition(lambda self: bool(self.copies))
    @rule(data=st.data())
    def bring_a_copy_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.copies)))
        path = name.path(self.config.spool, CLOSED)
        if not path.exists() and not path.with_suffix(OPEN).exists():
            path.write_bytes(self.copies[name])

    @rule(point=st.none() | st.sampled_from(sorted(COMMIT)))
    def commit(self, point: str | None) -> None:
        with dying(COMMIT.get(point or "")):
            Committer(self.config).commit()
        self.check()

    @rule()
    def commit_twice_at_once(self) -> None:
        threads = [Thread(target=Committer(self.config).commit) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.check()

    @rule(point=st.none() | st.sampled_from(sorted(REPAIR)))
    def repair(self, point: str | None) -> None:
        with dying(REPAIR.get(point or "")):
            Repairer(self.config).repair()
        self.check()

    @rule()
    def compact(self) -> None:
        compact(self.config.log)
        self.check()

    @rule(point=st.none() | st.sampled_from(sorted(JOIN)))
    def compact_by_itself(self, point: str | None) -> None:
        with dying(JOIN.get(point or "")):
            compact_due(self.config, math.inf)
        self.check()

    def check(self) -> None:
        """No row twice, and none that nobody wrote."""
        for table in TABLES:
            found = rows_in_log(self.config, table)
            assert set(found.values()) <= {1}
            assert set(found) <= self.promised.rows[table]

    def teardown(self) -> None:
        """Every row that nothing touched is there; every other is there or counted as lost."""
        for writer in self.writers.values():
            writer.end()
        Committer(self.config).commit()
        if not any(self.promised.hit.values()):
            assert verify(self.config).problems == []
        Repairer(self.config).repair()
        self.check()
        found = verify(self.config)
        assert (found.problems, found.quarantined, found.orphan_files) == ([], 0, 0)
        for table in TABLES:
            in_log = set(rows_in_log(self.config, table))
            assert self.promised.rows[table] - self.promised.hit[table] <= in_log
            self.check_balance(found.tables[table], table, len(in_log))
        shutil.rmtree(self.folder)

    def check_balance(self, balance: Balance, table: str, num_rows: int) -> None:
        counted = sum(n for (name, _), n in self.promised.counted.items() if name == table)
        assert (balance.committed, balance.in_flight) == (num_rows, 0)
        assert balance.started == num_rows + balance.dropped.total()
        assert balance.started >= counted
        assert set(balance.dropped) <= {"damaged", "vanished"}
        if not self.promised.hit[table]:
            assert balance.dropped == Counter()

    def left_open(self) -> list[tuple[SegmentName, Path]]:
        """Open segments of writers that died."""
        found = []
        for name, path in segments(self.config.spool, OPEN):
            with locked_if_free(path) as file:
                if file is not None:
                    found.append((name, path))
        return found

    def at_rest(self) -> list[tuple[SegmentName, Path]]:
        """Segments that nobody writes."""
        kept = [*segments(self.config.spool, CLOSED), *segments(self.config.spool, BAD)]
        return kept + self.left_open()


@pytest.mark.slow
@pytest.mark.timeout(36_000)  # a long run: pytest --interleavings 2000
def test_any_interleaving_leaves_the_promised_rows_and_no_others(
    pytestconfig: pytest.Config,
) -> None:
    run_state_machine_as_test(
        Capture,
        settings=settings(
            max_examples=pytestconfig.getoption("--interleavings"),
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )
