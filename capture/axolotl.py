"""Examples for axolotl's distillation plugin, as JSON lines.

The layout of its dataset type ``axolotl.integrations.kd.chat_template``: ``messages``, and for
each of the answer's tokens ``logprobs`` (numbers) and ``target_token_ids``. The older layout,
``logprobs`` as ``{"token": "token_id:123", "logprob": -0.1}``, is read too. All positions of an
example have equally many entries, so the shorter ones are filled up.

Lost to axolotl: the tail (it renormalises the entries), the prompt's ids (it applies the chat
template again, and where that adds something behind the last token, positions shift), the
adaptive k. Lost to nobody who reads the object ``retort`` beside them, which makes an import
whole; a line without it cannot be imported, for its tokens are not known.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from capture.chat import messages_of
from capture.examples import Row, filled_up, joined, positions, without_fillers
from capture.lines import read_lines, with_time, wrong_line

ELSEWHERE = ("topk_size", "topk_ids", "topk_logprobs")


def write_axolotl(path: Path, rows: Iterable[Row]) -> None:
    """Write a line per example; those whose prompt was no text are left out."""
    with path.open("wb") as file:
        for row in rows:
            messages = messages_of(row)
            if messages is None:
                continue
            k = max(row["topk_size"])
            entries = [filled_up(*entry, k) for entry in zip(*positions(row), strict=True)]
            line = {
                "messages": messages,
                "logprobs": [logprobs for _, logprobs in entries],
                "target_token_ids": [ids for ids, _ in entries],
                "retort": {name: value for name, value in row.items() if name not in ELSEWHERE},
            }
            file.write(orjson.dumps(line) + b"\n")


def read_axolotl(path: Path) -> Iterator[Row]:
    """Read lines with the object ``retort``.

    Raises:
        LogError: If a line lacks it, or its lists do not fit each other.
    """
    for number, document in read_lines(path):
        known, logprobs = document.get("retort"), document.get("logprobs")
        if not isinstance(known, dict) or not isinstance(logprobs, list):
            raise wrong_line(path, number, 'expected "logprobs" and "retort" (the tokens\' ids)')
        ids = document.get("target_token_ids")
        if ids is None:
            ids = [[int(entry["token"].split(":")[1]) for entry in top] for top in logprobs]
            logprobs = [[entry["logprob"] for entry in top] for top in logprobs]
        if not len(ids) == len(logprobs) == len(known.get("completion_ids", ())):
            raise wrong_line(path, number, "as many logprobs as completion_ids were expected")
        entries = [without_fillers(*entry) for entry in zip(ids, logprobs, strict=True)]
        found = joined([ids for ids, _ in entries], [values for _, values in entries])
        yield with_time({**found, **known})
