"""What traffic a log holds: how much, how long, how often the same, how narrow."""

from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb

from capture.errors import ConfigError
from capture.log import Log, query
from quant.advise.assumptions import Measured
from quant.advise.costs import DAYS_PER_MONTH
from quant.advise.words import seen_share, split_words, texts_of
from quant.errors import AdviceError

SHORTEST_SECONDS = 3600.0  # that say anything of a month
DAY_SECONDS = 86_400.0
WEEK_DAYS = 7
LARGEST = 5  # tasks
COUNTED_SHARE = 0.9  # below that their means may not be those of all
LATEST_ROWS = 5_000  # looked through for words, the newest

# What clients asked and got. Imports and a student's own rows were never traffic.
ASKED = "status = 'completed' and role <> 'shadow' and capture not in ('import', 'rollout')"
ROUTES = f"""
select route, count(*) as requests from exchanges where {ASKED}
group by route order by requests desc, route
"""  # noqa: S608
TRAFFIC = f"with traffic as (select * from exchanges where {ASKED} and route = ?)"  # noqa: S608
COUNTED = f"""
{TRAFFIC},
lengths as (
    select exchange_id, max(prompt) as prompt, sum(completion) as completion
    from (
        select exchange_id, choice, max(len(prompt_ids)) as prompt,
            max(len(completion_ids)) as completion
        from logits group by exchange_id, choice
    ) group by exchange_id
),
counted as (
    select started_at, model_revision, coalesce(prompt_tokens, lengths.prompt) as prompt,
        coalesce(completion_tokens, lengths.completion) as completion
    from traffic left join lengths using (exchange_id)
)
"""  # noqa: S608
TOTALS = """
select count(*) as requests, min(started_at) as first_at, max(started_at) as last_at,
    avg(prompt) as prompt_tokens, avg(completion) as completion_tokens,
    count(prompt + completion) as counted, list(distinct model_revision) as revisions
from counted
"""
BUSIEST = """
select max(tokens) as tokens from (
    select sum(coalesce(prompt, 0) + coalesce(completion, 0)) as tokens
    from counted group by date_trunc('hour', started_at)
)
"""
TASKS = """
, asked as (
    select case when json_valid(request) then json(request) end as body from traffic
),
tasks as (
    select
        hash(
            case when body ->> '$.messages[0].role' in ('system', 'developer')
                then body -> '$.messages[0].content' end,
            body -> '$.tools', body -> '$.response_format'
        ) as task,
        hash(body -> '$.messages', body -> '$.prompt', body -> '$.input') as prompt
    from asked where body is not null
),
sizes as (select count(*) as size from tasks group by task)
select (select count(*) from tasks) as readable,
    (select count(distinct prompt) from tasks) as prompts,
    (select count(*) from sizes) as tasks,
    (select sum(size) from (select size from sizes order by size desc limit ?)) as largest
"""
TEXTS = """
select request, response_text from traffic where json_valid(request)
order by started_at desc, exchange_id limit ?
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """One route's traffic.

    Attributes:
        requests: Answered ones, without shadows and what was imported.
        days: From the first to the last.
        counted_share: Requests of which the number of tokens is known.
        prompt_tokens: Mean of those; None if there are none.
        completion_tokens: Likewise.
        peak_over_mean: Tokens of the busiest hour over the mean hour's; None of less than a day.
        repeated_share: Requests that had been asked before, to the letter; None without texts.
        tasks: Different instructions: system message, tools and response format together.
        largest_tasks_share: Requests with one of the five most frequent.
        seen_share: Of the newest pairs of words, how many were there before; None if there are
            too few words.
        revisions: Of the models that answered.
    """

    route: str
    requests: int
    first_at: datetime
    last_at: datetime
    days: float
    counted_share: float
    prompt_tokens: float | None
    completion_tokens: float | None
    peak_over_mean: float | None
    repeated_share: float | None
    tasks: int | None
    largest_tasks_share: float | None
    seen_share: float | None
    revisions: tuple[str, ...]

    def warnings(self, given: Container[str]) -> list[str]:
        """What makes a month's figures doubtful.

        Args:
            given: Names of the assumptions that somebody has set.
        """
        found = []
        if self.days < WEEK_DAYS and "requests_per_month" not in given:
            found.append(
                f"the log spans {self.days:.1f} days; a week has quiet and busy ones, so a month's "
                "figures may be far off"
            )
        if self.counted_share < COUNTED_SHARE:
            found.append(
                f"the number of tokens is known of {self.counted_share:.0%} of the requests: the "
                "means are theirs"
            )
        if self.seen_share is None:
            found.append("too few words in the log to say how narrow the domain is")
        return found

    def measured(self, given: Container[str]) -> dict[str, Measured]:
        """What the log says of assumptions.

        Args:
            given: Names of those that somebody has set.

        Raises:
            AdviceError: If the log says too little.
        """
        for name in ("prompt_tokens", "completion_tokens"):
            if getattr(self, name) is None and name not in given:
                raise AdviceError(
                    f"no request of {self.route} in the log has a number of tokens: say what one "
                    f"has on average by --set {name}=N"
                )
        needs_rate = "requests_per_month" not in given
        if needs_rate and self.days * DAY_SECONDS < SHORTEST_SECONDS:
            raise AdviceError(
                f"the log's {self.requests} requests of {self.route} span "
                f"{self.days * DAY_SECONDS:,.0f} seconds, which say nothing of a month: wait, or "
                "say how many there are by --set requests_per_month=N"
            )
        source = f"log, {self.requests:,} requests in {self.days:.1f} days"
        per_month = self.requests / self.days * DAYS_PER_MONTH if needs_rate else None
        values = {
            "requests_per_month": per_month,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "peak_over_mean": self.peak_over_mean,
        }
        return {name: Measured(v, source) for name, v in values.items() if v is not None}


def read_traffic(log: Log, route: str | None) -> Traffic:
    """Look at a route's traffic.

    Args:
        log: To read.
        route: None for the only one that there is.

    Raises:
        AdviceError: If the log holds no answered request.
        ConfigError: If the route is not there, or none is named of several.
    """
    with log.connect() as connection:
        name = _chosen(query(connection, ROUTES).to_pylist(), route, log)
        (totals,) = query(connection, COUNTED + TOTALS, name).to_pylist()
        (busiest,) = query(connection, COUNTED + BUSIEST, name).to_pylist()
        (tasks,) = query(connection, TRAFFIC + TASKS, name, LARGEST).to_pylist()
        seen = _seen_share(connection, name)
    seconds = (totals["last_at"] - totals["first_at"]).total_seconds()
    readable = tasks["readable"]
    return Traffic(
        route=name,
        requests=totals["requests"],
        first_at=totals["first_at"],
        last_at=totals["last_at"],
        days=seconds / DAY_SECONDS,
        counted_share=totals["counted"] / totals["requests"],
        prompt_tokens=totals["prompt_tokens"],
        completion_tokens=totals["completion_tokens"],
        peak_over_mean=_peak(totals, busiest["tokens"], seconds),
        repeated_share=1 - tasks["prompts"] / readable if readable else None,
        tasks=tasks["tasks"] if readable else None,
        largest_tasks_share=float(tasks["largest"]) / readable if readable else None,
        seen_share=seen,
        revisions=tuple(sorted(filter(None, totals["revisions"]))),
    )


def _chosen(found: list[dict[str, Any]], route: str | None, log: Log) -> str:
    names = [str(row["route"]) for row in found]
    if not names:
        raise AdviceError(
            f"{log.folder}: no answered request in the log: point an app at `retort serve` and "
            "come back when it has been used for some days"
        )
    if route is None and len(names) > 1:
        raise ConfigError(f"the log has traffic of {', '.join(names)}: choose one by --route")
    if route is not None and route not in names:
        raise ConfigError(f"--route {route}: no answered request of it; known: {', '.join(names)}")
    return route or names[0]


def _peak(totals: dict[str, Any], busiest: float, seconds: float) -> float | None:
    tokens = totals["requests"] * sum(
        totals[name] or 0.0 for name in ("prompt_tokens", "completion_tokens")
    )
    if seconds < DAY_SECONDS or not tokens:
        return None
    mean = float(tokens) / seconds * 3600
    return max(1.0, float(busiest) / mean)


def _seen_share(connection: duckdb.DuckDBPyConnection, route: str) -> float | None:
    rows = query(connection, TRAFFIC + TEXTS, route, LATEST_ROWS).to_pylist()
    texts = [text for row in rows for text in texts_of(row["request"], row["response_text"])]
    return seen_share([split_words(text) for text in texts])
