"""Results of ``retort log`` as JSON, CSV and tables for people."""

import csv
import sys
from collections.abc import Mapping
from io import StringIO

import orjson
import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

MAX_ROWS = 100


def as_json(value: object) -> str:
    """One line of JSON; times as ISO 8601, what JSON lacks (infinity, NaN) as null."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def as_csv(rows: pa.Table) -> str:
    """Rows with a header; lists as JSON."""
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(rows.column_names)
    for row in rows.to_pylist():
        writer.writerow([_cell(value) for value in row.values()])
    return text.getvalue()


def print_rows(rows: pa.Table) -> None:
    """Show rows as a table, the first ``MAX_ROWS`` of them."""
    table = Table(*rows.column_names)
    for row in rows.slice(0, MAX_ROWS).to_pylist():
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    Console().print(table)
    if rows.num_rows > MAX_ROWS:
        left = rows.num_rows - MAX_ROWS
        print(f"{left} more rows; --json or --csv prints all", file=sys.stderr)  # noqa: T201


def print_fields(document: Mapping[str, object]) -> None:
    """Show names and values, one per line; lists of objects as a table."""
    console = Console(highlight=False)
    for name, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print_rows(pa.Table.from_pylist(value))
        else:
            console.print(f"{name:20} {escape(_cell(value))}")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else as_json(value).strip('"')
