"""How much is in the log, and what it costs to keep."""

from dataclasses import asdict, dataclass
from datetime import datetime

from capture.delta import active_files, open_table
from capture.log import Log, query
from capture.schema import TABLES
from capture.store import LogFolder

TOTALS = """
select
    (select count(*) from exchanges) as exchanges,
    (select count(*) from logits) as choices,
    (select count(*) from examples) as examples,
    (select coalesce(sum(len(completion_ids)), 0)::bigint from logits) as tokens,
    (select sum(list_sum(topk_size))::bigint from logits) as entries,
    (select min(started_at) from exchanges) as first_at,
    (select max(started_at) from exchanges) as last_at
"""

ROUTES = """
with tokens as (
    select exchange_id, sum(len(completion_ids))::bigint as tokens from logits
    where source <> 'score' group by exchange_id
)
select route, role, deployment, count(*) as exchanges,
    count(*) filter (status = 'completed') as completed,
    coalesce(sum(tokens), 0)::bigint as tokens
from exchanges left join tokens using (exchange_id)
group by all order by all
"""


@dataclass(frozen=True, slots=True)
class RouteStatistics:
    """One deployment's traffic on one route."""

    route: str
    role: str
    deployment: str
    exchanges: int
    completed: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """The log in figures.

    Attributes:
        exchanges: Rows of ``exchanges``.
        choices: Rows of ``logits``.
        examples: Rows of ``examples``, which training reads.
        tokens: Positions with a recorded distribution.
        mean_k: Entries kept per position; None without positions.
        bytes_on_disk: Size of the Parquet files that count, by table.
        bytes_per_token: Bytes of ``logits`` per position, prompts included; None without any.
        first_at: Start of the first exchange.
        last_at: Start of the last.
    """

    exchanges: int
    choices: int
    examples: int
    tokens: int
    mean_k: float | None
    bytes_on_disk: dict[str, int]
    bytes_per_token: float | None
    first_at: datetime | None
    last_at: datetime | None
    routes: list[RouteStatistics]

    def document(self) -> dict[str, object]:
        """The figures as JSON takes them."""
        return asdict(self)


def statistics(folder: LogFolder) -> Statistics:
    """Count what a log holds.

    Raises:
        LogError: If it cannot be read.
    """
    tables = {name: open_table(folder, name) for name in TABLES}
    sizes = {
        name: sum(file.num_bytes for file in active_files(table)) if table else 0
        for name, table in tables.items()
    }
    with Log(folder).connect() as connection:
        (totals,) = query(connection, TOTALS).to_pylist()
        routes = [RouteStatistics(**row) for row in query(connection, ROUTES).to_pylist()]
    entries, tokens = totals.pop("entries"), totals["tokens"]
    return Statistics(
        **totals,
        mean_k=entries / tokens if tokens else None,
        bytes_on_disk=sizes,
        bytes_per_token=sizes["logits"] / tokens if tokens else None,
        routes=routes,
    )
