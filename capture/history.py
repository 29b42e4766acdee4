"""What the transactions of a table tell: which rows came, which did not, which went."""

from collections import Counter
from typing import Any

from deltalake import DeltaTable

from capture.delta import DROPPED, ERASED, ROWS, WITHDRAWN, store_errors
from capture.store import folder_at


def entries(table: DeltaTable) -> list[dict[str, Any]]:
    """One per transaction, the newest first; each is read from the store.

    Raises:
        LogError: If the store fails.
    """
    with store_errors(folder_at(table.table_uri)):
        return table.history()


def committed_rows(table: DeltaTable) -> dict[str, int]:
    """Rows ever added, by writer, as the history tells it."""
    totals: dict[str, int] = {}
    for entry in entries(table):
        for writer, counts in entry.get(ROWS, {}).items():
            totals[writer] = totals.get(writer, 0) + sum(counts.values())
    return totals


def dropped_rows(table: DeltaTable) -> dict[str, Counter[str]]:
    """Rows that a commit kept out of the table, by writer and reason, as the history tells it."""
    totals: dict[str, Counter[str]] = {}
    for entry in entries(table):
        for reason, counts in entry.get(DROPPED, {}).items():
            for writer, rows in counts.items():
                totals.setdefault(writer, Counter())[reason] += rows
    return totals


def erased_rows(table: DeltaTable) -> int:
    """Rows ever erased, as the history tells it."""
    return sum(int(entry.get(ERASED, 0)) for entry in entries(table))


def withdrawn_rows(table: DeltaTable) -> int:
    """Rows taken back because they should never have been added, as the history tells it."""
    return sum(int(entry.get(WITHDRAWN, 0)) for entry in entries(table))
