"""What every reader of the log gets: SQL over the two tables, and the functions SQL lacks."""

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from capture.divergence import kl_where_comparable
from capture.schema import Flag

COMPLETE = """
    logits where {flags} and {source} and len(completion_ids) > 0
    and len(topk_size) = len(completion_ids) and len(tail_logprob) = len(completion_ids)
"""

OWN, SCORED = "source <> 'score'", "source = 'score'"  # what was answered, or was given to score

# A choice may have been written twice, first while its client hesitated: the longest row counts,
# and of two equally long ones (an engine died, another answered) any one. Only ranks are gathered
# in memory, the lists stream through, and DuckDB reads none that is not asked for: it does as long
# as no `with` clause names the complete rows.
RANK = "row(len(completion_ids), hash(tail_logprob))"
LONGEST = f"""
with best as (
    select exchange_id, choice, max({RANK}) as rank from {{complete}} group by all
),
longest as (
    select
        exchange_id, choice, model_revision, tokenizer_hash, prompt_ids, completion_ids, topk_size,
        topk_ids, topk_logprobs, tail_logprob, tail_draws, flags
    from (select *, {RANK} as rank from {{complete}})
    semi join best using (exchange_id, choice, rank)
)
"""  # noqa: S608
# What a candidate answered unseen is no example of what its teacher answers.
JOINED = """
create view {name} as
{longest}
select
    exchanges.exchange_id, choice, exchanges.day, route, role, model, longest.model_revision,
    tokenizer_hash, request, params, response_text[choice + 1] as response_text,
    finish_reason[choice + 1] as finish_reason, prompt_ids, completion_ids, topk_size, topk_ids,
    topk_logprobs, tail_logprob, tail_draws, started_at{more}
from longest join exchanges on exchanges.exchange_id = longest.exchange_id
where status = 'completed' and role <> 'shadow'
"""
VIEWS = {
    "examples": ("flags = 0", ""),
    "answers": (f"flags & {int(Flag.INCOMPLETE)} = 0", ", flags"),  # the distribution may not hold
}

TOKENS = """
create view tokens as
select
    exchange_id, choice, day, route, role, model, model_revision,
    unnest(range(len(completion_ids))) as position, unnest(completion_ids) as token_id,
    unnest(nested_ids(topk_ids, topk_size)) as topk_ids,
    unnest(nested_logprobs(topk_logprobs, topk_size)) as topk_logprobs,
    unnest(tail_logprob) as tail_logprob
from examples
"""

SIDE = {
    "prompt_ids": "INTEGER",
    "completion_ids": "INTEGER",
    "topk_size": "SMALLINT",
    "topk_ids": "INTEGER",
    "topk_logprobs": "FLOAT",
}
SPACE = "concat(' ', chr(9), chr(10), chr(13))"
PAIRS = """
create view pairs as
{longest},
pair as (
    select
        incumbent.exchange_id, shadow.exchange_id as shadow_id, incumbent.day, incumbent.started_at,
        incumbent.route, incumbent.deployment, shadow.deployment as candidate, incumbent.request,
        unnest(range(greatest(len(incumbent.response_text), 1))) as choice,
        incumbent.response_text[choice + 1] as response_text,
        shadow.response_text[choice + 1] as candidate_text,
        incumbent.tool_calls, shadow.tool_calls as candidate_tool_calls,
        shadow.status as candidate_status, shadow.error_type as candidate_error,
        shadow.ttft_ms / incumbent.ttft_ms as ttft_ratio,
        shadow.duration_ms / incumbent.duration_ms as duration_ratio
    from exchanges incumbent
    join exchanges shadow on shadow.pair_id = incumbent.exchange_id and shadow.role = 'shadow'
),
score as (select * from {scored}),
compared as (
    select
        pair.*, score.exchange_id is not null as is_scored,
        kl_where_comparable({sides}) as token_kl_nats
    from pair
    left join longest theirs
        on theirs.exchange_id = pair.exchange_id and theirs.choice = pair.choice
    left join longest ours on ours.exchange_id = shadow_id and ours.choice = pair.choice
    left join score on score.exchange_id = shadow_id and score.choice = pair.choice
        and score.prompt_ids = theirs.prompt_ids and score.completion_ids = theirs.completion_ids
)
select
    *, len(token_kl_nats) as compared_tokens, list_avg(token_kl_nats) as kl_nats,
    candidate_status = 'completed'
    and trim(response_text, {space}) = trim(candidate_text, {space})
    and tool_calls is not distinct from candidate_tool_calls as agrees
from compared
"""


def create_views(connection: duckdb.DuckDBPyConnection) -> None:
    """Define ``examples``, ``answers``, ``tokens`` and ``pairs`` over the two tables."""
    for name, value in (("nested_ids", "INTEGER"), ("nested_logprobs", "FLOAT")):
        connection.create_function(
            name, nested, [f"{value}[]", "SMALLINT[]"], f"{value}[][]", type=PythonUDFType.ARROW
        )
    side = f"STRUCT({', '.join(f'{name} {kind}[]' for name, kind in SIDE.items())})"
    connection.create_function(
        "kl_where_comparable",
        kl_where_comparable,
        [side, side],
        "DOUBLE[]",
        type=PythonUDFType.ARROW,
        null_handling=FunctionNullHandling.SPECIAL,
    )
    for name, (flags, more) in VIEWS.items():
        longest = LONGEST.format(complete=COMPLETE.format(flags=flags, source=OWN))
        connection.execute(JOINED.format(name=name, longest=longest, more=more))
    connection.execute(TOKENS)
    theirs = ", ".join(f"{name}: theirs.{name}" for name in SIDE)
    ours = ", ".join(f"{name}: coalesce(score.{name}, ours.{name})" for name in SIDE)
    longest = LONGEST.format(complete=COMPLETE.format(flags="flags = 0", source=OWN))
    scored = COMPLETE.format(flags="flags = 0", source=SCORED)
    sides = f"{{{theirs}}}, {{{ours}}}"
    connection.execute(PAIRS.format(longest=longest, scored=scored, sides=sides, space=SPACE))


def nested(values: pa.ChunkedArray, sizes: pa.ChunkedArray) -> pa.ListArray:
    """Cut each row's flat list into the lists of its positions, without copying values.

    SQL can do this only by copying a row's whole list for every position.

    Args:
        values: A flat list per row.
        sizes: How many of the values belong to each position of the row.

    Raises:
        ValueError: If a row's sizes do not add up to its number of values.
    """
    flat, counts = (_lists(column) for column in (values, sizes))
    ends = np.append(0, np.cumsum(np.asarray(counts.flatten()), dtype=np.int32))
    rows = np.append(0, np.cumsum(np.asarray(counts.value_lengths()), dtype=np.int32))
    if not np.array_equal(np.diff(ends[rows]), np.asarray(flat.value_lengths())):
        raise ValueError("topk_size does not add up to topk_ids; see `retort log verify`")
    return pa.ListArray.from_arrays(
        rows.astype(np.int32), pa.ListArray.from_arrays(ends.astype(np.int32), flat.flatten())
    )


def _lists(column: pa.ChunkedArray | pa.ListArray) -> pa.ListArray:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
