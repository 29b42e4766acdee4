"""Does the log hold what was captured: ``started = committed + dropped + in flight``.

Three sources that know nothing of each other are compared: the writers' own counts, the rows
found in the spool's segments, and the Delta tables with the history of their transactions.
"""

import contextlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from deltalake import DeltaTable

from capture.account import Counts, read_counts
from capture.balance import Balance, Evidence
from capture.config import CaptureConfig
from capture.delta import active_files, open_table, store_errors
from capture.errors import SpoolError
from capture.history import committed_rows, dropped_rows, erased_rows, withdrawn_rows
from capture.intent import intended_files
from capture.log import Log, query
from capture.quarantine import Note, damaged_writers, quarantined
from capture.schema import TABLES
from capture.sieve import REDACTED
from capture.spool import CLOSED, OPEN, SegmentName, living_writers, read_segment, segments

COMPLETENESS = """
with asked as (
    select exchange_id, coalesce(len(response_text), 1) as choices,
        coalesce(completion_tokens, 0) as tokens
    from exchanges
    where status = 'completed' and capture in ('tap', 'wire') and role <> 'shadow'
),
found as (
    select exchange_id, count(*) as choices, sum(len(completion_ids)) as tokens
    from examples group by exchange_id
)
select count(*) as captured,
    count(*) filter (found.choices >= asked.choices and found.tokens >= asked.tokens) as complete
from asked left join found using (exchange_id)
"""

REPEATED_EXCHANGES = """
select count(*) - count(distinct exchange_id) as repeated from exchanges
"""

# A choice written again because it went on is longer; one that is the same was added twice.
REPEATED_CHOICES = """
with same as (
    select exchange_id, choice, source, count(*) as times from logits
    group by exchange_id, choice, source, len(completion_ids), hash(tail_logprob)
)
select coalesce(sum(times - 1), 0)::bigint as repeated,
    count(*) - count(distinct row(exchange_id, choice, source)) as superseded
from same
"""


@dataclass(slots=True)
class Verification:
    """What ``retort log verify`` found.

    Attributes:
        problems: Each a sentence; empty if the log holds what it should.
        tables: Balance of each table.
        damaged: Segments set aside, and why.
        orphan_files: Parquet files that no version counts.
        superseded: Rows of ``logits`` that a longer row of the same choice replaces.
        captured: Completed exchanges of clients whose distributions should be there.
        complete: Those of them that have every choice, whole and unflagged.
    """

    problems: list[str] = field(default_factory=list)
    tables: dict[str, Balance] = field(default_factory=dict)
    damaged: dict[SegmentName, Note] = field(default_factory=dict)
    orphan_files: int = 0
    superseded: int = 0
    captured: int = 0
    complete: int = 0

    @property
    def quarantined(self) -> int:
        """How many segments are set aside."""
        return len(self.damaged)

    def document(self) -> dict[str, object]:
        """The findings as JSON, with sums over both tables."""
        total = Balance()
        for balance in self.tables.values():
            total.add(balance)
        return {
            **total.document(),
            "problems": self.problems,
            "tables": {name: balance.document() for name, balance in self.tables.items()},
            "quarantined": self.quarantined,
            "damaged": [
                {"segment": str(name), **note.document()} for name, note in self.damaged.items()
            ],
            "orphan_files": self.orphan_files,
            "superseded": self.superseded,
            "captured": self.captured,
            "complete": self.complete,
            "complete_fraction": self.complete / self.captured if self.captured else 1.0,
        }


def verify(config: CaptureConfig) -> Verification:
    """Compare counts, spool and log; rows may move on meanwhile.

    Raises:
        LogError: If the log cannot be read.
    """
    found = Verification(damaged=dict(quarantined(config.spool)))
    for name in TABLES:
        _check_balance(config, name, found)
    with Log(config.log).connect() as connection:
        (counted,) = query(connection, COMPLETENESS).to_pylist()
        (exchanges,) = query(connection, REPEATED_EXCHANGES).to_pylist()
        (choices,) = query(connection, REPEATED_CHOICES).to_pylist()
    found.captured, found.complete = counted["captured"], counted["complete"]
    found.superseded = choices["superseded"]
    for name, rows in (("exchanges", exchanges["repeated"]), ("logits", choices["repeated"])):
        if rows:
            found.problems.append(f"{name}: {rows} rows are in the table more than once")
    return found


def _check_balance(config: CaptureConfig, name: str, found: Verification) -> None:
    """Balance one table, writer by writer, and its files against its history."""
    evidence, delta = gather(config, name)
    total = found.tables[name] = Balance()
    for writer in evidence:
        if writer.lost and not writer.is_damaged:
            found.problems.append(
                f"{name}: {writer.lost} rows of writer {writer.counts.writer} have vanished"
            )
        total.add(writer.balance())
    if delta is None:
        return
    kept = sum(file.num_rows for file in active_files(delta))
    erased = erased_rows(delta)
    withdrawn = withdrawn_rows(delta)
    if kept + erased + withdrawn != total.committed:
        found.problems.append(
            f"{name}: {kept} rows and {erased + withdrawn} erased, "
            f"expected {total.committed} in all"
        )
    if withdrawn:
        total.committed -= withdrawn
        total.dropped[REDACTED] += withdrawn
    found.orphan_files += len(orphans(config, name))


def gather(config: CaptureConfig, name: str) -> tuple[list[Evidence], DeltaTable | None]:
    """Read what there is to know of one table's writers.

    Rows move from a writer's counts over the spool to the table. Reading in this order, what
    is read later may be ahead of what was read earlier, but never behind it.
    """
    alive = living_writers(config.spool)
    accounts = {
        w: counts for (table, w), counts in read_counts(config.spool).items() if table == name
    }
    spooled = _spooled_rows(config.spool, name)
    damaged = damaged_writers(config.spool, name)
    delta = open_table(config.log, name)
    committed = committed_rows(delta) if delta else {}
    kept_out = dropped_rows(delta) if delta else {}
    evidence = []
    for writer in sorted(accounts.keys() | spooled.keys() | committed.keys() | kept_out.keys()):
        covered = (delta.transaction_version(writer) or 0) if delta else 0
        evidence.append(
            Evidence(
                counts=accounts.get(writer, Counts(table=name, writer=writer)),
                committed=committed.get(writer, 0),
                waiting=sum(n for sequence, n in spooled[writer].items() if sequence > covered),
                is_alive=(name, writer) in alive,
                is_damaged=writer in damaged,
                kept_out=kept_out.get(writer, Counter()),
            )
        )
    return evidence, delta


def orphans(config: CaptureConfig, name: str) -> set[str]:
    """Files that no version counts, except those that a commit under way is writing."""
    intended = set(intended_files(config.spool, name))
    delta = open_table(config.log, name)
    if delta is None:
        return set()
    with store_errors(config.log):
        replaced = delta.vacuum(0, enforce_retention_duration=False)
        unknown = delta.vacuum(0, enforce_retention_duration=False, full=True)
    return set(unknown) - set(replaced) - intended - set(intended_files(config.spool, name))


def _spooled_rows(spool: Path, table: str) -> dict[str, dict[int, int]]:
    """Rows in segments by writer and sequence; one that is renamed meanwhile is found again."""
    rows: dict[str, dict[int, int]] = defaultdict(dict)
    for suffix in (OPEN, CLOSED):
        for name, path in segments(spool, suffix):
            if name.table != table:
                continue
            with contextlib.suppress(FileNotFoundError, SpoolError):
                rows[name.writer][name.sequence] = read_segment(path).num_rows
    return rows
