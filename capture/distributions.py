"""One exchange as the log holds it: request, answer, what the model weighed at each token."""

from dataclasses import dataclass

from capture.errors import LogError
from capture.log import Log, query
from capture.schema import Flag
from capture.store import LogFolder

EXCHANGE = "select * from exchanges where exchange_id = ?"
CHOICES = "select * from logits where exchange_id = ? order by choice, len(completion_ids)"

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Shown:
    """An exchange and its recorded choices.

    Attributes:
        exchange: Its row; None if only distributions are there.
        choices: One per row of ``logits``, each with a list ``positions`` of ``position``,
            ``token_id``, ``topk`` (pairs of id and logprob, likeliest first) and ``tail_logprob``.
    """

    exchange: Json | None
    choices: list[Json]


def show(folder: LogFolder, exchange_id: str) -> Shown:
    """Read and decode one exchange.

    Raises:
        LogError: If the log holds nothing of it.
    """
    with Log(folder).connect() as connection:
        exchanges = query(connection, EXCHANGE, exchange_id).to_pylist()
        rows = query(connection, CHOICES, exchange_id).to_pylist()
    if not exchanges and not rows:
        raise LogError(
            f"{folder}: no exchange {exchange_id!r}; if it is recent, `retort log commit` brings "
            "it in from the spool"
        )
    return Shown(exchanges[0] if exchanges else None, [_decode(row) for row in rows])


def _decode(row: Json) -> Json:
    """Replace the flat lists of a row by one object per position."""
    ids, logprobs = iter(_list(row.pop("topk_ids"))), iter(_list(row.pop("topk_logprobs")))
    tokens, sizes, tails = (
        _list(row.pop(name)) for name in ("completion_ids", "topk_size", "tail_logprob")
    )
    row["flags"] = [flag.name for flag in Flag if flag & int(str(row["flags"]))]
    row["positions"] = [
        {
            "position": position,
            "token_id": token,
            "topk": [[next(ids), next(logprobs)] for _ in range(int(str(size)))],
            "tail_logprob": tail,
        }
        for position, (token, size, tail) in enumerate(zip(tokens, sizes, tails, strict=True))
    ]
    return row


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
