"""Files of JSON lines, and examples in them with all their columns."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import orjson

from capture.errors import LogError
from capture.examples import Row


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Write every column of each example; nothing of an example is lost."""
    with path.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps(row) + b"\n")


def read_examples(path: Path) -> Iterator[Row]:
    """Read what ``write_lines`` wrote.

    Raises:
        LogError: If a line is not JSON.
    """
    for _, document in read_lines(path):
        yield with_time(document)


def read_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the JSON objects of a file with their line numbers, empty lines left out.

    Raises:
        LogError: If a line is something else.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                document = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise wrong_line(path, number, str(error)) from error
            if not isinstance(document, dict):
                raise wrong_line(path, number, "not a JSON object")
            yield number, document


def wrong_line(path: Path, number: int, reason: str) -> LogError:
    """The error of a line that cannot be taken; it never quotes the line."""
    return LogError(f"{path}: line {number}: {reason}")


def with_time(row: Row) -> Row:
    """Take ``started_at`` as JSON has it."""
    if isinstance(row.get("started_at"), str):
        row["started_at"] = datetime.fromisoformat(row["started_at"])
    return row
