"""What a row of another program's file must be before any of it is written to the log."""

import itertools
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capture.errors import LogError
from capture.examples import ARRAYS, PLAIN, Row
from capture.schema import LOGITS

TEXTS = tuple(name for name in PLAIN if name not in {"choice", "started_at"})
IDS = ("prompt_ids", "completion_ids", "topk_ids")
LOGPROBS = ("topk_logprobs", "tail_logprob")
NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)  # null: of nothing
MAX_CHOICE = 2**15 - 1  # an int16
WRONG = (KeyError, IndexError, AttributeError, TypeError, ValueError, OverflowError)


def checked(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows of a file that the log's columns can hold.

    Raises:
        LogError: At the first that they cannot; names its number, from 1, and quotes nothing of it.
    """
    for number in itertools.count(1):
        try:
            row = next(rows, None)
        except pa.ArrowException:  # some are among the others, and say more
            raise
        except WRONG as error:
            kind = type(error).__name__
            raise LogError(f"{path}: row {number}: not of this format ({kind})") from error
        if row is None:
            return
        for expected, is_met in DEMANDS.items():
            if not _holds(is_met, row):
                raise LogError(f"{path}: row {number}: expected {expected}")
        yield row


def _holds(is_met: Callable[[Row], bool], row: Row) -> bool:
    try:
        return is_met(row)
    except WRONG:
        return False


def _has_id(row: Row) -> bool:
    return isinstance(row["exchange_id"], str) and row["exchange_id"] != ""


def _has_day(row: Row) -> bool:
    """A day becomes a folder's name: of all that ISO allows, only the form of ours."""
    day = row.get("day")
    return day is None or date.fromisoformat(day).isoformat() == day


def _has_choice(row: Row) -> bool:
    choice = row.get("choice") or 0
    return isinstance(choice, int) and 0 <= choice <= MAX_CHOICE


def _has_time(row: Row) -> bool:
    moment = row.get("started_at")
    return moment is None or (isinstance(moment, datetime) and moment.tzinfo is not None)


def _has_texts(row: Row) -> bool:
    return all(isinstance(row.get(name), str | None) for name in TEXTS)


def _has_numbers(row: Row) -> bool:
    if not row.get("completion_ids"):
        return True
    columns = _columns(row)
    is_number = not any(np.isnan(columns[name]).any() for name in LOGPROBS)
    return is_number and all(columns[name].min(initial=0) >= 0 for name in IDS)


def _has_positions(row: Row) -> bool:
    if not row.get("completion_ids"):
        return True
    length = len(row["completion_ids"])
    return len(row["topk_size"]) == len(row["tail_logprob"]) == length


def _has_entries(row: Row) -> bool:
    if not row.get("completion_ids"):
        return True
    size = row["topk_size"]
    return min(size) >= 1 and sum(size) == len(row["topk_ids"]) == len(row["topk_logprobs"])


def _columns(row: Row) -> dict[str, npt.NDArray[Any]]:
    """A row's lists in their columns' types; a cast takes text and truth for numbers too."""
    columns = {}
    for name in ARRAYS:
        found = pa.array(row[name])
        if not any(is_type(found.type) for is_type in NUMBERS):
            raise TypeError(name)
        column = found.cast(LOGITS.field(name).type.value_type)
        columns[name] = column.to_numpy(zero_copy_only=not column.null_count)
    return columns


DEMANDS: dict[str, Callable[[Row], bool]] = {
    "exchange_id, a text that is not empty": _has_id,
    "day, if it is given, as YYYY-MM-DD": _has_day,
    "choice, if it is given, a number from 0": _has_choice,
    "started_at, if it is given, a time with its zone": _has_time,
    f"a text, if any, as {', '.join(TEXTS)}": _has_texts,
    f"lists of numbers, ids from 0, as {', '.join(ARRAYS)}": _has_numbers,
    "one topk_size and one tail_logprob for each of completion_ids": _has_positions,
    "topk_size of 1 or more, as many topk_ids and topk_logprobs as their sum": _has_entries,
}
